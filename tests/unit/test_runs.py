"""The runs of an experiment, pinned: one for a recipe without a search, one a point of its grid otherwise, with the
parameters and settings that the row changes; names; the losses that they build.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from losses import InfoNCE, Margin
from orchestrator.config import Experiment
from orchestrator.runs import RunSpec, first_run, most_runs, run_at, runs_of, standing_for


def with_row(row: Any, **training: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "e",
            "collection": {"path": "c"},
            "encoder": {"model": "m"},
            "training": {"batch_size": 8, **training},
            "recipes": [row],
        }
    )


def runs(row: Any, **training: Any) -> tuple[RunSpec, ...]:
    experiment = with_row(row, **training)
    return runs_of(experiment, experiment.recipes[0])


def test_a_recipe_without_a_search_is_one_run() -> None:
    (run,) = runs("arm-adaptive")
    assert (run.row, run.recipe, run.name, run.knobs) == ("arm-adaptive", "arm-adaptive", "arm-adaptive", {})
    assert (run.loss, run.parameters) == ("margin", {"target": "adaptive", "in_batch": "rows"})
    assert run.training.batch_size == 8
    loss = run.build_loss()
    assert isinstance(loss, Margin)
    assert (loss.target, loss.in_batch) == ("adaptive", "rows")


def test_a_search_is_a_run_for_each_point_of_its_grid() -> None:
    found = runs({"recipe": "static-margin", "tune": {}})
    assert [run.knobs for run in found] == [{"target": tenth / 10} for tenth in range(1, 11)]
    assert [run.parameters for run in found] == [{"in_batch": "rows", **run.knobs} for run in found]
    assert [run.name for run in found][::9] == ["static-margin target=0.1", "static-margin target=1"]
    assert len({run.name for run in found}) == 10


def test_a_row_changes_loss_settings_grid_and_name() -> None:
    first, second = runs(
        {
            "recipe": "static-margin",
            "name": "columns",
            "loss": {"in_batch": "columns", "error": "l1"},
            "training": {"learning_rate": 1e-3},
            "tune": {"space": {"target": [0.25, 0.5]}},
        }
    )
    assert (first.row, first.recipe) == ("columns", "static-margin")
    assert (first.name, second.name) == ("columns target=0.25", "columns target=0.5")
    assert second.parameters == {"in_batch": "columns", "error": "l1", "target": 0.5}
    assert (second.training.learning_rate, second.training.batch_size) == (1e-3, 8)


def test_a_knob_that_the_row_fixes_needs_no_search() -> None:
    (run,) = runs({"recipe": "infonce", "loss": {"temperature": 0.07}})
    assert (run.name, run.knobs, run.parameters) == ("infonce", {}, {"temperature": 0.07})
    loss = run.build_loss()
    assert isinstance(loss, InfoNCE)
    assert loss.temperature == 0.07


@pytest.mark.parametrize("values", [[0.1, 0.1000001], [1e-9, 2e-9]])
def test_no_two_runs_of_a_row_have_one_name(values: list[float]) -> None:
    found = runs({"recipe": "infonce", "tune": {"space": {"temperature": values}}})
    assert len({run.name for run in found}) == 2


def test_knobs_of_training_are_settings_of_the_run() -> None:
    tune = {"space": {"training.learning_rate": [1e-3]}, "training": ["batch_size"]}
    found = runs({"recipe": "infonce", "loss": {"temperature": 0.07}, "tune": tune}, epochs=3)
    assert [run.knobs for run in found] == [
        {"training.learning_rate": 1e-3, "training.batch_size": size} for size in (32, 64, 128)
    ]
    assert [run.training.batch_size for run in found] == [32, 64, 128]
    assert {(run.training.learning_rate, run.training.epochs) for run in found} == {(1e-3, 3)}
    assert [run.parameters for run in found] == [{"temperature": 0.07}] * 3, "no parameters of the loss"
    assert found[0].name == "infonce training.learning_rate=0.001 training.batch_size=32"


def test_a_batch_by_tokens_is_a_knob_like_any() -> None:
    (run,) = runs({"recipe": "arm-adaptive", "tune": {"space": {"training.batch_size": ["4096 tokens"]}}})
    assert (run.training.batch_tokens, run.name) == (4096, "arm-adaptive training.batch_size=4096 tokens")


def test_the_budget_cuts_a_grid() -> None:
    assert [run.knobs["target"] for run in runs({"recipe": "static-margin", "tune": {"trials": 3}})] == [0.1, 0.2, 0.3]


def test_what_stands_for_a_row_whose_points_are_drawn() -> None:
    drawn = with_row({"recipe": "infonce", "tune": {"search": "tpe", "training": ["learning_rate", "batch_size"]}})
    (row,) = drawn.recipes
    first = {"temperature": 0.05, "training.learning_rate": 5e-5}
    assert first_run(drawn, row).knobs == {**first, "training.batch_size": 32}
    assert [run.knobs for run in standing_for(drawn, row)] == [
        {**first, "training.batch_size": size} for size in (32, 64, 128)
    ]
    assert most_runs(row) == 10
    given = {"temperature": {"low": 0.01, "high": 0.2}}
    ranged = with_row({"recipe": "infonce", "tune": {"search": "random", "trials": 4, "space": given}})
    (row,) = ranged.recipes
    assert [run.knobs for run in standing_for(ranged, row)] == [{"temperature": 0.01}]
    assert most_runs(row) == 4
    few = with_row({"recipe": "arm-adaptive", "tune": {"search": "tpe", "training": ["batch_size"]}})
    assert most_runs(few.recipes[0]) == 3, "there are no more"


def test_a_run_is_made_again_of_its_knobs() -> None:
    tune = {"training": ["batch_size", "learning_rate"]}
    experiment = with_row({"recipe": "static-margin", "tune": tune})
    for run in runs_of(experiment, experiment.recipes[0]):
        again = json.loads(json.dumps(run.knobs))
        assert run_at(experiment, experiment.recipes[0], again) == run
