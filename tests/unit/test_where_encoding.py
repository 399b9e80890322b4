"""Pins: where the evaluation encodes. One worker that would have this whole machine is no process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_flow

from orchestrator import evaluation
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.config import load
from orchestrator.evaluation import evaluate_all, untrained_model
from orchestrator.workspace import Workspace


class AskedError(Exception):
    """Ends the evaluation once it has asked for its shards."""


@pytest.mark.parametrize(
    ("worker", "there", "address", "here"),
    [
        (WorkerSize(2, 0.0), Resources(2, 0.0, 2, 0.0), None, True),
        (WorkerSize(1, 0.0), Resources(2, 0.0, 2, 0.0), None, False),  # two workers
        (WorkerSize(2, 0.0), Resources(2, 0.0, 2, 0.0), "10.0.0.1:6379", False),  # a cluster's machine
        (WorkerSize(1, 1.0), Resources(8, 1.0, 8, 1.0), None, False),
        (WorkerSize(8, 0.0), Resources(8, 1.0, 8, 1.0), None, False),  # this process would take the GPU
    ],
)
def test_where_it_encodes(
    worker: WorkerSize,
    there: Resources,
    address: str | None,
    here: bool,
    tmp_path: Path,
    tiny_collection: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    workspace = Workspace(load(tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)))
    asked: list[Any] = []

    def run_shards(*arguments: Any, connect: Any, **named: Any) -> None:
        asked.append(connect)
        raise AskedError

    monkeypatch.setattr(evaluation, "run_shards", run_shards)

    def connect() -> None:
        raise AssertionError

    with pytest.raises(AskedError):
        evaluate_all(workspace, [untrained_model(workspace, "untrained")], worker, there, connect)
    assert asked == [None if here else connect]
