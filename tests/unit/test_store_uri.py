"""An experiment whose store is at a URI: trained on one machine, it is finished on another; workers work where their
driver does; several machines are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_flow

from data import Store, UserError
from orchestrator import cluster, trial
from orchestrator.config import load
from orchestrator.evaluation import evaluate_all, trained
from orchestrator.runs import runs_of
from orchestrator.trial import read_trial, run_trial
from orchestrator.workspace import Workspace


@pytest.fixture
def experiment(
    tmp_path: Path, tiny_collection: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, one_cpu: None
) -> Any:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)

    def on(machine: str) -> Workspace:
        monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / machine))
        settings = [f"store=file://{tmp_path}/kept", "recipes=[arm-adaptive]", "negatives={source: mined, depth: 9}"]
        return Workspace(load(path, settings))

    return on


def test_what_one_machine_has_trained_another_evaluates(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = experiment("one")
    run = runs_of(one.experiment, one.experiment.recipes[0])[0]
    points: list[Any] = []
    run_trial(one, run, points.append)
    assert len(points) == 2
    measured = evaluate_all(one, {"arm-adaptive": trained(one, run)})

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(trial, "train", never)
    monkeypatch.setattr("data.sharded._make_shard", never)
    two, again = experiment("two"), []
    run_trial(two, run, again.append)
    assert again == points
    assert [path.name for path in two.store.root.iterdir() if path.name == "trials"] == ["trials"]
    stage = two.trial(run)
    assert read_trial(stage, run).curve == read_trial(one.trial(run), run).curve
    assert stage.path.is_relative_to(two.store.root)
    found = evaluate_all(two, {"arm-adaptive": trained(two, run)})
    assert found["arm-adaptive"].measures == measured["arm-adaptive"].measures
    assert found["arm-adaptive"].per_query == measured["arm-adaptive"].per_query


def test_a_worker_works_where_its_driver_does(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = experiment("one")
    driver.negatives  # noqa: B018
    opened = driver.opened
    monkeypatch.setenv("STILLHOUSE_CACHE", "/nowhere")
    worker = Workspace.of(opened)
    assert worker.store == driver.store
    assert worker.training_inputs == driver.training_inputs
    assert worker.tokens.documents.folder == driver.tokens.documents.folder


def test_several_machines_take_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "machines", lambda: [{"CPU": 4.0}, {"CPU": 8.0}])
    cluster.check_store(Store(tmp_path))
    with pytest.raises(UserError) as refused:
        cluster.check_store(Store("s3://bucket/x"))
    assert str(refused.value).startswith("store: s3://bucket/x is a URI, and the cluster has 2 machines, which have to")
    monkeypatch.setattr(cluster, "machines", lambda: [{"CPU": 4.0}])
    cluster.check_store(Store("s3://bucket/x"))
