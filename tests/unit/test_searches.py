"""The search of a row, pinned: its trials in their order, the same after a kill and cut lines; budgets; what it is
known by; what it says when all have failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_trial
from tiny import save

from orchestrator.journal import JOURNAL, Entry, Journal
from orchestrator.records import Cost, Progress, Trial, to_json
from orchestrator.runs import RunSpec
from orchestrator.searches import POINTS, Points, RowSearch, search_stage, started_runs, winner_of
from orchestrator.trial import MODEL, RECORD, Failure, fail
from orchestrator.workspace import Workspace

Make = Callable[..., Workspace]
DRAWN = {"search": "tpe", "trials": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save(tmp_path_factory.mktemp("searches") / "model", tokenizer=tokenizer_folder, layers=3)


@pytest.fixture
def make(beir: Callable[..., Path], model: Path, tmp_path: Path) -> Make:
    """A workspace with one row, tuned as it is told."""
    collection = beir(**tiny_trial.beir_files())

    def workspace(tune: dict[str, Any] | None, recipe: str = "infonce", **row: Any) -> Workspace:
        made = tiny_trial.experiment(collection, model, tmp_path / "store")
        values = made.model_dump() | {"recipes": [{"recipe": recipe, "tune": tune, **row}]}
        return Workspace(type(made).model_validate(values))

    return workspace


def search_of(workspace: Workspace, side_by_side: bool = False) -> RowSearch:
    return RowSearch(workspace, workspace.experiment.recipes[0], side_by_side)


def journalled(workspace: Workspace, run: RunSpec, validation: float, seconds: float = 1.0) -> Entry:
    stage = workspace.trial(run)
    stage.partial.mkdir(parents=True, exist_ok=True)
    costs = (Cost(stage="training", device_seconds=seconds),)
    entry = Entry(Progress(6, 24, seconds, 0.1, validation), costs)
    Journal(stage.partial / JOURNAL).append(entry)
    return entry


def finish(workspace: Workspace, run: RunSpec, validation: float, seconds: float = 1.0) -> None:
    """As if the run had been trained; done again, nothing changes."""
    if workspace.trial(run).done:
        return
    entry = journalled(workspace, run, validation, seconds)
    trial = Trial(run.name, run.knobs, "finished", validation, (entry.point,), entry.costs)

    def write(partial: Path) -> None:
        (partial / MODEL).mkdir()
        (partial / RECORD).write_text(json.dumps(to_json(trial)))

    workspace.trial(run).build(write)


def quality(run: RunSpec) -> float:
    return round(1 - abs(run.knobs.get("temperature", 0.5) - 0.05), 4)


def names(workspace: Workspace, most: int = 99, score: Callable[[RunSpec], float] = quality) -> list[str]:
    """Runs the search as one trial at a time would, or the first trials of it."""
    search, found = search_of(workspace), []
    while len(found) < most and (run := search.next()) is not None:
        found.append(run.name)
        finish(workspace, run, score(run))
        search.ended(run)
    return found


def test_a_grid_in_its_order_and_its_first_trials(make: Make) -> None:
    tune = {"space": {"temperature": [0.1, 0.05]}, "training": ["batch_size"]}
    whole = [
        f"infonce temperature={temperature} training.batch_size={size}"
        for temperature in (0.1, 0.05)
        for size in (32, 64, 128)
    ]
    assert names(make(tune)) == whole
    assert names(make({**tune, "trials": 4})) == whole[:4]
    assert not search_stage(make(tune), make(tune).experiment.recipes[0]).partial.exists(), "known before"


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_that_draws_goes_on_after_a_kill_as_if_it_had_not_been(
    make: Make, search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make({"search": search, "trials": 8})
    row = workspace.experiment.recipes[0]
    partial = search_stage(workspace, row).partial
    whole = names(workspace)
    points = Points(search_stage(workspace, row)).points
    assert len(whole) == len({*whole}) == 8
    assert [run.name for run in started_runs(workspace, row)] == whole
    assert names(workspace) == whole
    for reached in (0, 3, 6):  # killed in the midst of the next trial, and of a line of the journal
        (partial / POINTS).write_text(
            "".join(json.dumps({"point": point}) + "\n" for point in points[: reached + 1]) + '{"point": {"tempe'
        )
        assert names(workspace) == whole
        assert Points(search_stage(workspace, row)).points == points
    # What is in the journal is what is trained, whatever would be suggested today.
    monkeypatch.setattr("orchestrator.searches.suggest", lambda *args, **more: pytest.fail("suggested"))
    assert names(workspace) == whole


def test_more_trials_of_the_same_search_begin_with_the_same(make: Make) -> None:
    assert names(make({"search": "tpe", "trials": 9}))[:6] == names(make({"search": "tpe", "trials": 6}))


def test_a_small_space_is_searched_to_its_end(make: Make) -> None:
    tune = {"search": "tpe", "trials": 9, "space": {"temperature": [0.1, 0.05, 0.02]}}
    assert sorted(names(make(tune))) == [f"infonce temperature={value}" for value in (0.02, 0.05, 0.1)]
    assert len(names(make({"search": "random", "trials": 2, "training": ["batch_size"]}, "arm-adaptive"))) == 2


def test_no_trial_after_so_many_without_a_better_one(make: Make) -> None:
    values = [0.1, 0.02, 0.06, 0.05, 0.2, 0.3, 0.4, 0.5]
    workspace = make({"patience": 2, "space": {"temperature": values}})
    # Better: 0.1 (the first), 0.02, 0.06, 0.05; then two that are not.
    whole = [f"infonce temperature={value}" for value in values[:6]]
    assert names(workspace) == whole
    assert names(workspace) == whole, "and none is started when it is looked at again"
    assert Points(search_stage(workspace, workspace.experiment.recipes[0])).ended


def test_no_trial_once_so_many_device_seconds_are_spent(make: Make) -> None:
    workspace = make({"device_seconds": 3.0})
    assert len(names(workspace)) == 3, "a second each"
    # Side by side, what is under way counts as well.
    workspace = make({"device_seconds": 3.0, "space": {"temperature": [0.11, 0.12, 0.13, 0.14]}})
    search = search_of(workspace, side_by_side=True)
    for seconds in (1.0, 2.5):
        run = search.next()
        assert run is not None
        journalled(workspace, run, 0.5, seconds)
    assert search.next() is None


def test_a_search_is_known_by_what_it_was_known_by_before_there_were_others(make: Make) -> None:
    tune = {"scheduler": "asha", "space": {"temperature": [0.1, 0.05]}}
    workspace = make(tune)
    row = workspace.experiment.recipes[0]
    stage, runs = search_stage(workspace, row), started_runs(workspace, row)
    assert (stage.name, stage.version) == ("searches", 1)
    assert json.loads(json.dumps(stage.inputs)) == {
        "trials": [workspace.trial(run).fingerprint for run in runs],
        "names": ["infonce temperature=0.1", "infonce temperature=0.05"],
        "tune": {"search": "grid", "scheduler": "asha", "reduction_factor": 3, "space": {"temperature": [0.1, 0.05]}},
    }
    plain = make(None, "arm-adaptive")
    assert search_stage(plain, plain.experiment.recipes[0]).inputs["tune"] is None
    asked = [
        tune,
        {**tune, "patience": 2},
        {**tune, "trials": 1},
        {**tune, "training": ["learning_rate"]},
        {"search": "random"},
        {"search": "tpe"},
        {"search": "tpe", "trials": 11},
        {"search": "tpe", "space": {"temperature": {"low": 0.01, "high": 0.2}}},
        {"search": "tpe", "space": {"temperature": {"low": 0.01, "high": 0.2, "log": True}}},
    ]
    known = [search_stage(made, made.experiment.recipes[0]).fingerprint for made in map(make, asked)]
    assert len({*known}) == len(asked)
    assert search_stage(make({"search": "tpe", "trials": 10}), row).fingerprint in known, "the default"


def test_when_all_trials_have_failed_it_says_why_and_what_to_do(make: Make) -> None:
    workspace = make({"space": {"temperature": [0.1, 0.05]}})
    search = search_of(workspace)
    for _ in range(2):
        run = search.next()
        assert run is not None
        fail(workspace.trial(run), Failure("the loss is nan at step 2", "training.learning_rate", "Lower it (0.001)."))
        assert search.ended(run).state == "failed"
        assert search.failure() is None, "another may come"
    assert search.next() is None
    assert str(search.failure()) == (
        "training.learning_rate: all 2 trials of infonce failed, the last one: the loss is nan at step 2. Lower it "
        f"(0.001). To try the same again, remove {workspace.trial(run).partial}."
    )


def test_failed_trials_are_not_chosen_and_a_search_goes_on_without_them(make: Make) -> None:
    workspace = make({"patience": 2, "space": {"temperature": [0.1, 0.05, 0.2, 0.3]}})
    search = search_of(workspace)
    trials = []
    while (run := search.next()) is not None:
        if run.knobs["temperature"] == 0.05:
            fail(workspace.trial(run), Failure("out of memory", "training.activation_tokens", "Lower it."))
        else:
            finish(workspace, run, quality(run))
        trials.append(search.ended(run))
    assert [trial.state for trial in trials] == ["finished", "failed", "finished"], "the patience ends it"
    assert winner_of(trials).parameters == {"temperature": 0.1}
    assert search.failure() is None


def test_what_tune_is_given_and_told(make: Make, tmp_path: Path) -> None:
    """Trial by trial, as Ray calls it; the process of the second was ended for memory, that of the third was lost."""
    from ray.exceptions import OutOfMemoryError
    from ray.tune.search import Searcher

    from orchestrator import tuning

    workspace = make({"space": {"temperature": [0.1, 0.05, 0.2, 0.3]}})
    started: list[RunSpec] = []
    over: list[Trial] = []
    searcher = tuning._searcher(workspace, [search_of(workspace)], started.append, over.append)
    scheduler = tuning._scheduler(workspace.experiment, searcher)

    def loses(trial_id: str, error: Exception) -> None:
        """As a trial of Tune that was tried again, and is given up."""
        file = tmp_path / trial_id
        file.write_text(f"Failure # 1 (occurred at noon)\nnode lost\nFailure # 2 (occurred at one)\n{error}\n")
        config = {"row": "infonce"}
        trial = type("Trial", (), {"trial_id": trial_id, "error_file": str(file), "config": config})
        scheduler.on_trial_error(None, trial)
        searcher.on_trial_complete(trial_id, error=True)

    assert searcher.suggest("a") == {"row": "infonce", "number": 0, "point": '{"temperature": 0.1}'}
    finish(workspace, started[0], 0.7)
    searcher.on_trial_complete("a", result={})
    assert searcher.suggest("b")["number"] == 1
    loses("b", OutOfMemoryError("Task was killed due to the node running low on memory."))
    assert [(trial.name, trial.state, trial.reason) for trial in over] == [
        ("infonce temperature=0.1", "finished", ""),
        ("infonce temperature=0.05", "failed", "out of memory"),
    ]
    assert searcher.out_of_memory == {("infonce", 1)}
    assert searcher.suggest("c")["number"] == 2
    loses("c", RuntimeError("a bug"))
    assert searcher.suggest("d") == Searcher.FINISHED, "there is no sense in others: the driver is going to raise it"
    assert len(over) == 2


def test_a_row_that_fails_altogether_ends_everything(make: Make) -> None:
    from ray.tune.search import Searcher

    from orchestrator import tuning

    workspace = make(None, "arm-adaptive")
    started: list[RunSpec] = []
    both = [search_of(workspace), search_of(workspace)]
    searcher = tuning._searcher(workspace, both, started.append, lambda trial: None)
    stopper = tuning._stopper(searcher)
    assert searcher.suggest("a")
    fail(workspace.trial(started[0]), Failure("the loss is nan at step 2", "training.learning_rate", "Lower it."))
    assert stopper("a", {"failed": True}), "this trial"
    assert not stopper.stop_all()
    searcher.on_trial_complete("a", result={"failed": True})
    assert searcher.suggest("b") == Searcher.FINISHED
    assert stopper.stop_all()
    assert str(searcher.failure).startswith(
        "training.learning_rate: arm-adaptive: the loss is nan at step 2. Lower it."
    )
