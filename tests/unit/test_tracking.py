"""Pins, on a sqlite database of MLflow's: how many requests a comparison takes; that a finished one takes none, and
MLflow is not even imported for it; that nothing is there twice, whatever was sent live or lost on the way.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator import tracking
from orchestrator.config import Experiment
from orchestrator.records import UNTRAINED, Comparison, Cost, EncoderFigures, Prices, Progress, Result, Seeded, Trial
from orchestrator.run_facts import Facts
from orchestrator.runs import RunSpec
from orchestrator.tracking import Tracker, finished_in

ROOT = Path(__file__).parents[2]
STEPS = 250  # more metrics than one request takes
RUNS = 1 + 2 + 3  # the comparison, its rows, their trials
FINGERPRINT = "0123456789abcdef"
EXPERIMENT = Experiment.model_validate(
    {
        "name": "tiny",
        "collection": {"path": "c"},
        "encoder": {"model": "m"},
        "recipes": [{"recipe": "infonce", "tune": {"space": {"temperature": [0.1, 0.2]}}}],
    }
)
FACTS = Facts(FINGERPRINT, EXPERIMENT, {"python": "3", "commit": "abc"})


def of(trial: Trial) -> RunSpec:
    return FACTS.run_of("infonce", trial)


def trial(name: str, state: str) -> Trial:
    curve = tuple(Progress(step, 8 * step, 0.5 * step, 1 / step, 0.5, {"margin": 0.1}) for step in range(1, STEPS + 1))
    measured = {"peak_bytes": 500, "joules": 7.0, "flops": 60.0, "precision": "bf16"}
    costs = (Cost("training", "infonce", name, device_seconds=6.0, wall_seconds=3.0, **measured),)
    return Trial(name, {"temperature": float(name.rpartition("=")[2])}, state, 0.5, curve, costs)


@pytest.fixture
def comparison() -> Comparison:
    failed = replace(trial("infonce temperature=0.4", "failed"), reason="the loss is nan at step 5")
    trials = trial("infonce temperature=0.1", "finished"), trial("infonce temperature=0.2", "stopped"), failed
    figures = EncoderFigures(parameters=9, median_ms=1.5, p95_ms=2.0, threads=2)
    results = (
        Result(UNTRAINED, UNTRAINED, True, (), None, {"nDCG@10": 0.3}, {}),
        Result("infonce", "infonce", False, trials, trials[0].name, {"nDCG@10": 0.4}, {}, encoder=figures),
    )
    costs = tuple(cost for trial in trials for cost in trial.costs)
    return Comparison(
        "tiny", FINGERPRINT, "c", 5, 3, 1, 1, "m", ("nDCG@10",), results, costs, "name: tiny\n", {"python": "3"}
    )


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """The report, and row → its run, all with two files."""
    made = {name: tmp_path / name for name in ("report", UNTRAINED, "infonce")}
    for folder in made.values():
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).write_text(name)
    return made.pop("report"), made


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each method of MLflow's client is called from now on."""
    counted: Counter[str] = Counter()
    for name in (
        "search_runs", "create_run", "get_run", "get_metric_history", "log_batch", "log_metric", "log_param", "set_tag",
        "set_terminated", "log_artifact", "log_artifacts",
    ):  # fmt: skip
        method = getattr(MlflowClient, name)

        def call(self: Any, *arguments: Any, name: str = name, method: Any = method, **named: Any) -> Any:
            counted[name] += 1
            return method(self, *arguments, **named)

        monkeypatch.setattr(MlflowClient, name, call)
    return counted


def held(uri: str) -> dict[str, tuple[str, str | None, Counter[tuple[str, int, float]]]]:
    """Run → its state, its parent's name, and how often each metric has each value at each step."""
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(names)
    return {
        run.info.run_name: (
            run.info.status,
            names.get(run.data.tags.get("mlflow.parentRunId")),
            Counter(
                (key, metric.step, metric.value)
                for key in run.data.metrics
                for metric in client.get_metric_history(run.info.run_id, key)
            ),
        )
        for run in runs
    }


def test_requests_of_a_comparison(
    uri: str, comparison: Comparison, folders: tuple[Path, dict[str, Path]], requests: Counter[str]
) -> None:
    assert Tracker(uri, "tiny").publish(comparison, FACTS, *folders)
    curves = 4  # three trials', and the winner's once more in its row
    assert requests == {
        "search_runs": 1,
        "create_run": RUNS,
        "log_batch": RUNS + curves,  # 1000 values of a curve are two requests
        "set_terminated": RUNS,
        "log_artifacts": 3,
    }
    runs = held(uri)
    assert {name: run[:2] for name, run in runs.items()} == {
        "tiny": ("FINISHED", None),
        UNTRAINED: ("FINISHED", "tiny"),
        "infonce": ("FINISHED", "tiny"),
        "infonce temperature=0.1": ("FINISHED", "infonce"),
        "infonce temperature=0.2": ("KILLED", "infonce"),
        "infonce temperature=0.4": ("FAILED", "infonce"),
    }
    logged = runs["infonce temperature=0.2"][2]
    assert set(logged.values()) == {1}
    assert {(step, value) for key, step, value in logged if key == "train/loss"} == {
        (step, 1 / step) for step in range(1, STEPS + 1)
    }
    of_trial = {key: value for key, _, value in logged if key.startswith("cost/")}
    assert of_trial == {
        "cost/training_device_seconds": 6.0,
        "cost/device_seconds": 6.0,
        "cost/wall_seconds": 3.0,
        "cost/tokens": 0.0,
        "cost/flops": 60.0,
        "cost/peak_bytes": 500.0,
        "cost/joules": 7.0,
    }
    every = {key: value for key, _, value in runs["infonce"][2]}
    assert (every["cost/chosen_run_seconds"], every["cost/all_runs_seconds"]) == (6.0, 18.0)
    assert every["test/nDCG_at_10"] == 0.4
    of_row = {key: value for key, value in every.items() if key.startswith("encoder/")}
    assert of_row == {"encoder/parameters": 9, "encoder/median_ms": 1.5, "encoder/p95_ms": 2.0}


def test_what_is_known_of_rates_and_prices(
    uri: str, comparison: Comparison, folders: tuple[Path, dict[str, Path]]
) -> None:
    known = replace(comparison, peak_flops={"cpu bf16": 40.0}, prices=Prices(cpu=3.0))
    Tracker(uri, "tiny").publish(known, FACTS, *folders)
    for name, seconds in (("infonce temperature=0.1", 6), ("infonce", 18), ("tiny", 18)):
        values = {key: value for key, _, value in held(uri)[name][2] if key.startswith("cost/")}
        assert values["cost/utilisation"] == pytest.approx(0.25)  # 60 FLOPs at 40 a second, in 6 s
        assert values["cost/money"] == pytest.approx(seconds * 3 / 3600)
        assert (values["cost/peak_bytes"], values["cost/joules"]) == (500.0, 7.0 * seconds / 6)
    assert not {"cost/peak_bytes", "cost/money"} & {key for key, _, _ in held(uri)[UNTRAINED][2]}


def test_runs_are_found_and_compared(uri: str, comparison: Comparison, folders: tuple[Path, dict[str, Path]]) -> None:
    tracker = Tracker(uri, "tiny")
    # Live, before anything is over, a run has its tags and parameters.
    tracker.publish_points(FACTS, of(comparison.results[1].trials[0]), comparison.results[1].trials[0].curve[:3])
    client = MlflowClient(tracking_uri=uri)

    def names(wanted: str) -> list[str]:
        return sorted(run.info.run_name for run in client.search_runs(["1"], wanted))

    assert names("params.`loss.temperature` = '0.1'") == ["infonce temperature=0.1"]
    tracker.publish(comparison, FACTS, *folders)
    of_infonce = ["infonce", *(f"infonce temperature={value}" for value in (0.1, 0.2, 0.4))]
    assert names("tags.`stillhouse.recipe` = 'infonce'") == of_infonce
    assert names("tags.`stillhouse.kind` = 'recipe'") == ["infonce", "untrained"]
    assert len(names("tags.`stillhouse.commit` = 'abc' and tags.`stillhouse.seed` = '13'")) == RUNS
    assert names("params.`training.learning_rate` = '2e-05' and metrics.`test/nDCG_at_10` > 0.3") == ["infonce"]
    (winner,) = client.search_runs(["1"], "attributes.run_name = 'infonce'")
    (tried,) = client.search_runs(["1"], "attributes.run_name = 'infonce temperature=0.1'")
    assert winner.data.params == tried.data.params == FACTS.params("infonce", of(comparison.results[1].trials[0]))
    # What a run took, not how long it took to log it.
    assert winner.info.end_time - winner.info.start_time == 9000
    assert tried.info.end_time - tried.info.start_time == 3000
    page = tracker.page("nDCG@10")
    assert page.startswith("/#/experiments/1/runs?workflowType=machine_learning&")
    assert (
        "&orderByKey=metrics.%60test%2FnDCG_at_10%60&" in page or "&orderByKey=metrics.%60test/nDCG_at_10%60&" in page
    )


def test_a_run_with_a_further_seed_has_its_own_measures(
    uri: str, comparison: Comparison, folders: tuple[Path, dict[str, Path]]
) -> None:
    untrained, infonce = comparison.results
    first = infonce.trials[0]
    seeds = (
        Seeded(13, first, {"nDCG@10": 0.3}),
        Seeded(14, replace(first, name=f"{first.name} seed=14"), {"nDCG@10": 0.5}),
    )
    seeded = replace(comparison, results=(untrained, replace(infonce, seeds=seeds)))
    Tracker(uri, "tiny").publish(seeded, FACTS, *folders)
    client, runs = MlflowClient(tracking_uri=uri), held(uri)
    assert runs[f"{first.name} seed=14"][:2] == ("FINISHED", "infonce")
    (again,) = client.search_runs(["1"], "tags.`stillhouse.seed` = '14'")
    assert (again.data.metrics["test/nDCG_at_10"], again.data.params["seed"]) == (0.5, "14")
    row = {key: value for key, _, value in runs["infonce"][2]}
    assert (row["test/nDCG_at_10"], row["test_sd/nDCG_at_10"]) == (0.4, pytest.approx(0.2 / 2**0.5))


def test_a_parameter_that_has_another_value_by_now_is_left_as_it_is(
    uri: str, comparison: Comparison, folders: tuple[Path, dict[str, Path]]
) -> None:
    first = comparison.results[1].trials[0]
    Tracker(uri, "tiny").publish_points(FACTS, of(first), first.curve[:3])
    often = EXPERIMENT.training.model_copy(update={"checkpoint_seconds": 9.0})  # of no consequence for any number
    other = replace(FACTS, experiment=EXPERIMENT.model_copy(update={"training": often}))
    assert Tracker(uri, "tiny").publish(comparison, other, *folders)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs(["1"], f"attributes.run_name = '{first.name}'")
    assert run.data.params["training.checkpoint_seconds"] == "300.0"
    assert run.info.status == "FINISHED"


def test_a_finished_one_takes_none(
    uri: str, comparison: Comparison, folders: tuple[Path, dict[str, Path]], requests: Counter[str]
) -> None:
    Tracker(uri, "tiny").publish(comparison, FACTS, *folders)
    requests.clear()
    tracker = Tracker(uri, "tiny")
    assert tracker.publish(comparison, FACTS, *folders)
    assert not requests
    # And MLflow is not imported.
    code = (
        f"import sys\nfrom orchestrator.tracking import finished_in\n"
        f"assert finished_in({uri!r}, 'tiny', {comparison.fingerprint!r}) == '1'\nassert 'mlflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_finished(uri: str, comparison: Comparison, folders: tuple[Path, dict[str, Path]]) -> None:
    mark = comparison.fingerprint
    assert not finished_in(uri, "tiny", mark)  # no file
    tracker = Tracker(uri, "tiny")
    tracker.publish_points(FACTS, of(comparison.results[1].trials[0]), comparison.results[1].trials[0].curve)
    assert not finished_in(uri, "tiny", mark)  # begun
    tracker.publish(comparison, FACTS, *folders)
    assert finished_in(uri, "tiny", mark) == "1"
    assert not finished_in(uri, "other", mark)
    assert not finished_in(uri, "tiny", mark[:-1])
    assert not finished_in(uri.replace("sqlite:///", "http://"), "tiny", mark)
    client = MlflowClient(tracking_uri=uri)
    [parent] = client.search_runs(["1"], "attributes.run_name = 'tiny'")
    client.delete_run(parent.info.run_id)
    assert not finished_in(uri, "tiny", mark)
    Path("other.db").write_text("no database")
    assert not finished_in("sqlite:///other.db", "tiny", mark)
    with sqlite3.connect("empty.db") as empty:
        empty.execute("CREATE TABLE other (a)")
    assert not finished_in("sqlite:///empty.db", "tiny", mark)


def test_points_are_delivered_together(
    uri: str, comparison: Comparison, requests: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LIVE_SECONDS", 1000.0)
    tracker = Tracker(uri, "tiny")
    first, second, _ = comparison.results[1].trials
    for point in first.curve[:100]:
        tracker.publish_points(FACTS, of(first), [point])
    tracker.publish_points(FACTS, of(second), second.curve[:10])
    assert requests["log_batch"] == 1  # the first point; the rest waits for the seconds to pass
    tracker.deliver(FACTS)
    assert requests == {"search_runs": 1, "create_run": 4, "log_batch": 3}
    tracker.deliver(FACTS)
    assert requests["log_batch"] == 3
    losses = {name: {step for key, step, _ in run[2] if key == "train/loss"} for name, run in held(uri).items()}
    assert losses[first.name] == {*range(1, 101)}
    assert losses[second.name] == {*range(1, 11)}


def test_nothing_is_there_twice(
    uri: str, comparison: Comparison, folders: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LIVE_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    first, second, _ = comparison.results[1].trials
    tracker = Tracker(uri, "tiny")
    tracker.publish_points(FACTS, of(first), first.curve[:7])

    # The server does what it is asked for, and its answer is lost.
    for name in ("create_run", "log_batch"):
        method = getattr(MlflowClient, name)

        def lost(self: Any, *arguments: Any, method: Any = method, **named: Any) -> None:
            method(self, *arguments, **named)
            raise MlflowException("lost")

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, name, lost)
            tracker.publish_points(FACTS, of(first), first.curve[7:9])
            tracker.publish_points(FACTS, of(second), second.curve[:3])
        assert tracker.lost == "lost"
    Tracker(uri, "tiny").publish_points(FACTS, of(first), first.curve[:12])  # run again after a kill
    assert tracker.publish(replace(comparison), FACTS, *folders)
    runs = held(uri)
    assert len(runs) == RUNS
    for run in first, second:
        logged = runs[run.name][2]
        assert set(logged.values()) == {1}
        assert len([step for key, step, _ in logged if key == "train/loss"]) == STEPS
