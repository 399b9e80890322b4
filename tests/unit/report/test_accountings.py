"""Accountings of a speed-up, by hand: the search as it ran, whole grids, to the best score, to one that both reach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.records import UNTRAINED, Comparison, Cost, Progress, Result, Trial
from orchestrator.report.accountings import Counted, accountings
from orchestrator.report.details import details


def trial(name: str, *points: tuple[int, float, float], state: str = "finished") -> Trial:
    """A run with a point at each (examples, device seconds, validation)."""
    curve = tuple(Progress(i, examples, seconds, 0.1, score) for i, (examples, seconds, score) in enumerate(points))
    costs = (Cost("training", name.split()[0], name, device_seconds=curve[-1].device_seconds),)
    return Trial(name, {"t": 1.0} if " " in name else {}, state, curve[-1].validation or 0.0, curve, costs)


def result(name: str, *trials: Trial, winner: str | None = None) -> Result:
    per_query = {"nDCG@10": {"1": 0.5}}
    return Result(name, name, len(trials) < 2, trials, winner, {"nDCG@10": 0.5}, per_query)


ARM = trial("arm", (50, 10.0, 0.50), (100, 20.0, 0.70))
SEARCH = (
    trial("nce 1", (50, 12.0, 0.40), (100, 24.0, 0.80)),
    trial("nce 2", (50, 11.0, 0.75), (100, 22.0, 0.60)),
    trial("nce 3", (50, 15.0, 0.30), state="stopped"),
)


def comparison(*results: Result) -> Comparison:
    costs = tuple(cost for each in results for trial in each.trials for cost in trial.costs)
    return Comparison(
        "c", "f", "scifact", 10, 5, 2, 1, "m", ("nDCG@10",), (result(UNTRAINED), *results), costs, "seed: 1", {}
    )


def counted(*results: Result) -> Counted:
    (found,) = accountings(comparison(*results))
    return found


def test_every_way_by_hand() -> None:
    found = counted(result("arm", ARM, winner="arm"), result("nce", *SEARCH, winner="nce 1"))
    assert (found.row, found.over, found.trials, found.stopped, found.validation) == ("arm", "nce", 3, 1, 0.70)
    assert found.ratios == pytest.approx(
        {
            ("search", "device s"): (24 + 22 + 15) / 20,
            ("search", "examples"): 250 / 100,
            ("grid", "device s"): (24 + 22 + 30) / 20,
            ("grid", "examples"): 300 / 100,
            ("best", "device s"): (24 + 11 + 15) / 20,
            ("best", "examples"): (100 + 50 + 50) / 100,
            # The winner is at 0.70 three quarters of the way from 0.40 to 0.80.
            ("quality", "device s"): (22 + 15 + 21) / 20,
            ("quality", "examples"): (100 + 50 + 87.5) / 100,
        }
    )


def test_a_score_that_one_has_at_its_first_validation_is_paid_up_to_there() -> None:
    early = trial("arm", (50, 10.0, 0.90), (100, 20.0, 0.95))
    found = counted(result("arm", early, winner="arm"), result("nce", *SEARCH, winner="nce 1"))
    assert found.validation == 0.80
    assert found.ratios["quality", "device s"] == pytest.approx((22 + 15 + 24) / 10)


def test_a_search_over_the_training_settings_of_a_parameter_free_recipe_is_paid_too() -> None:
    two = (ARM, replace(ARM, name="arm 2"))
    free = replace(result("arm", *two, winner="arm"), parameter_free=True)
    found = counted(free, result("nce", *SEARCH, winner="nce 1"))
    assert found.ratios["search", "examples"] == pytest.approx(250 / 200)
    assert found.ratios["quality", "examples"] == pytest.approx((100 + 50 + 87.5) / 200)


def test_what_went_through_other_examples_or_had_one_setting_is_not_compared() -> None:
    half = trial("arm", (50, 10.0, 0.5))
    nce = result("nce", *SEARCH, winner="nce 1")
    assert accountings(comparison(result("arm", half, winner="arm"), nce)) == []
    fixed = replace(result("nce", SEARCH[0], winner="nce 1"), parameter_free=False)
    assert accountings(comparison(result("arm", ARM, winner="arm"), fixed)) == []


def test_the_report_has_a_table_of_them() -> None:
    whole = comparison(result("arm", ARM, winner="arm"), result("nce", *SEARCH, winner="nce 1"))
    (shown,) = (each for each in details(whole) if each.name == "accountings")
    assert shown.heads[:2] == ("the search as it ran, device s", "the search as it ran, examples")
    expected = ["3.0x", "2.5x", "3.8x", "3.0x", "2.5x", "2.0x", "2.9x", "2.4x"]
    assert shown.cells == {"arm against nce": expected}
    assert "ended early are taken to their end" in shown.caption
