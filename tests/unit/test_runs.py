"""The runs of an experiment, pinned: one for a recipe without a search, one a point of its grid otherwise, with the
parameters and settings that the row changes; names; the losses that they build.
"""

from __future__ import annotations

from typing import Any

import pytest

from losses import InfoNCE, Margin
from orchestrator.config import Experiment
from orchestrator.runs import RunSpec, runs_of


def runs(row: Any, **training: Any) -> tuple[RunSpec, ...]:
    experiment = Experiment.model_validate(
        {
            "name": "e",
            "collection": {"path": "c"},
            "encoder": {"model": "m"},
            "training": {"batch_size": 8, **training},
            "recipes": [row],
        }
    )
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
