"""What is pinned: rows that differ in their share and name alone are a family, whoever says it; others are not."""

from __future__ import annotations

from typing import Any

from orchestrator.config import Experiment
from orchestrator.families import families


def named(*rows: Any, **training: Any) -> dict[str, str]:
    return families(
        Experiment.model_validate(
            {
                "name": "e",
                "collection": {"path": "c"},
                "encoder": {"model": "m"},
                "training": {"batch_size": 8, **training},
                "recipes": list(rows),
            }
        )
    )


def arm(name: str, share: float, **others: Any) -> dict[str, Any]:
    training = {"share": share, **others.pop("training", {})}
    return {"recipe": "arm-adaptive", "name": name, "training": training, **others}


def test_rows_of_several_shares_are_named_by_the_largest() -> None:
    rows = arm("tenth", 0.1), "infonce", arm("half", 0.5), "arm-adaptive"
    family = {"tenth": "arm-adaptive", "half": "arm-adaptive", "arm-adaptive": "arm-adaptive", "infonce": ""}
    assert named(*rows) == family
    assert named(*rows[:3]) == {"tenth": "half", "half": "half", "infonce": ""}


def test_what_the_experiment_says_for_all_is_the_same_as_what_a_row_says() -> None:
    rows = {"recipe": "arm-adaptive", "name": "all"}, arm("tenth", 0.1, training={"epochs": 3}, encoder={"layers": [0]})
    assert named(*rows, epochs=3) == {"all": "", "tenth": ""}
    same = {**rows[0], "encoder": {"layers": [0]}}
    assert named(same, rows[1], epochs=3) == {"all": "all", "tenth": "all"}


def test_another_loss_recipe_search_or_training_is_another_family() -> None:
    for other in (
        {"recipe": "arm-distributed", "name": "other", "training": {"share": 0.1}},
        arm("other", 0.1, loss={"error": "l1"}),
        arm("other", 0.1, training={"learning_rate": 1e-3}),
        arm("other", 0.1, training={"queries": "both"}),
    ):
        assert named("arm-adaptive", other) == {"arm-adaptive": "", "other": ""}


def test_the_same_share_twice_is_no_family() -> None:
    assert named("arm-adaptive", arm("again", 1.0)) == {"arm-adaptive": "", "again": ""}
