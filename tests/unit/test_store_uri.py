"""An experiment whose store is at a URI: trained on one machine, it is finished on another; workers of the driver's
machine work where it does, and those of others bring what they need.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_flow

from data import Store, UserError
from data.travel import pack, unpack
from orchestrator import trial
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


def test_a_worker_on_another_machine_brings_what_it_needs(experiment: Any, tmp_path: Path) -> None:
    driver = experiment("driver")
    driver.negatives  # noqa: B018
    packed = pack(driver.opened)
    experiment("another")  # the folder of this process from now on
    shutil.move(tmp_path / "driver", tmp_path / "out-of-sight")
    worker = Workspace.of(unpack(replace(packed, machine="the driver's")))
    assert str(worker.store) == str(driver.store)
    for folder in (worker.store.root, worker.collection.folder, worker.model.path, worker.tokens.documents.folder):
        assert folder.is_relative_to(tmp_path / "another")
    assert worker.training_inputs == driver.training_inputs
    assert worker.negatives.pools[0].rows.tolist() == driver.negatives.pools[0].rows.tolist()
    assert not (tmp_path / "driver").exists()


def test_what_has_not_come_to_the_uri_is_told(experiment: Any, tmp_path: Path) -> None:
    driver = experiment("driver")
    driver.negatives  # noqa: B018
    packed = pack(driver.opened)
    shutil.rmtree(tmp_path / "kept" / "collection")
    experiment("another")
    with pytest.raises(UserError) as refused:
        unpack(replace(packed, machine="the driver's"))
    told = f"store: {driver.store} does not have collection/{driver.collection.folder.name}, which another machine has"
    assert str(refused.value).startswith(told)
    assert unpack(packed).collection == driver.opened.collection  # where it comes from, it is there
    assert unpack(pack(driver.opened)) == driver.opened
    experiment("another")
    worker = unpack(replace(packed, machine="the driver's"))  # for to pack it took it there again
    assert worker.collection.is_relative_to(tmp_path / "another")


def test_paths_of_a_store_in_a_folder_travel_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.mirror._roots", {})
    value = {"folder": Store(tmp_path).root / "tokens" / "x"}
    assert pack(value) is value
    assert unpack(value) is value
