"""Pins: Ray starts in the main thread while the collection is tokenized and mined, and only for what has to be trained;
a refusal of what goes on meanwhile arrives; small collections need no worker of Ray.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import tiny_flow

from data import UserError
from orchestrator import cluster
from orchestrator.compare import Job
from orchestrator.config import load
from orchestrator.console import Display
from orchestrator.tracking import Tracker


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread in which Ray was started, the one in which MLflow was opened; neither really is."""
    threads: list[str] = []
    monkeypatch.setattr(cluster, "connected", lambda: "ray" in threads)
    monkeypatch.setattr(cluster, "connect", lambda: threads.append("ray"))
    monkeypatch.setattr(Tracker, "open", lambda self: threads.append("mlflow"))
    return threads


@pytest.fixture
def job(tmp_path: Path, tiny_collection: Path, tiny_model: Path, started: list[str]) -> Job:
    return Job(load(tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)), Display())


def test_ray_starts_beside_the_preparations(job: Job, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> None:
        assert threading.current_thread() is threading.main_thread()
        end = time.monotonic() + 60
        while "tokens" not in vars(job.workspace):  # made by another thread, or never
            assert time.monotonic() < end
            time.sleep(0.01)
        started.append("ray")

    monkeypatch.setattr(cluster, "connect", connect)
    job.ready()
    assert sorted(started) == ["mlflow", "ray"]
    assert all(stage.done for stage in job.workspace.token_stages.values())


def test_without_a_run_there_is_no_ray(job: Job, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "_searched", lambda self, row: row.tune is None)
    job.ready(lambda row: row.tune is None)
    assert started == []
    assert len(job.workspace.tokens.documents) == tiny_flow.DOCUMENTS  # one shard: made in this process


def test_a_refusal_arrives(job: Job, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Job) -> None:
        raise UserError("too few", where="negatives.per_query", mend="Lower it.")

    monkeypatch.setattr(Job, "mine", refuse)
    with pytest.raises(UserError, match="too few"):
        job.ready()
    assert started == ["ray"]


def test_who_needs_ray_meanwhile_waits_for_it(job: Job, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(self: Job) -> None:
        self.workspace._connect()  # type: ignore[misc] # as a stage of several shards does
        assert started == ["ray"]

    monkeypatch.setattr(Job, "mine", mine)
    monkeypatch.setattr(cluster, "connect", lambda: (time.sleep(0.2), started.append("ray")))
    job.ready()
    assert started.count("ray") == 1
    monkeypatch.setattr(cluster, "connect", lambda: (_ for _ in ()).throw(ConnectionError("no")))
    started.clear()
    with pytest.raises(ConnectionError):
        Job(job.experiment, Display()).ready()
    assert started == []
