"""What is pinned: a knob that decides the score has all of the importance, knobs that only matter together have
little each, the same trials give the same numbers, and where nothing can be said nothing is."""

import math

import optuna
import pytest

from orchestrator.records import Result, Trial
from orchestrator.report.importance import importances, places

GRID = [(temperature, weight) for temperature in (0.01, 0.05, 0.25, 1.0) for weight in (1, 2, 3, 4)]


def searched(score, grid=GRID):
    trials = tuple(
        Trial(
            f"t-{number}",
            {"temperature": temperature, "weight": weight},
            "finished",
            score(temperature, weight),
            (),
            (),
        )
        for number, (temperature, weight) in enumerate(grid)
    )
    return Result("row", "row", False, trials, "t-0", {}, {})


def test_the_knob_that_decides_has_it_all():
    found = importances(searched(lambda temperature, weight: 0.5 + 0.1 * math.log10(temperature)))
    assert list(found) == ["temperature", "weight"]
    assert found["temperature"] > 0.95
    assert found["weight"] < 0.02
    turned = importances(searched(lambda temperature, weight: 0.1 * weight))
    assert list(turned) == ["weight", "temperature"]
    assert turned["weight"] > 0.95


def test_two_that_matter_alike_share_it():
    found = importances(searched(lambda temperature, weight: GRID[::4].index((temperature, 1)) + weight))
    assert found["temperature"] == pytest.approx(0.5, abs=0.1)
    assert found["weight"] == pytest.approx(0.5, abs=0.1)
    assert sum(found.values()) == pytest.approx(1, abs=0.1)


def test_what_knobs_do_together_is_neither_ones():
    found = importances(searched(lambda temperature, weight: float((temperature < 0.1) == (weight < 2.5))))
    assert sum(found.values()) < 0.4


def test_the_same_trials_give_the_same_numbers_and_no_word_is_printed(capfd):
    level = optuna.logging.get_verbosity()
    one, two = (importances(searched(lambda temperature, weight: math.sin(37 * temperature + weight))) for _ in "ab")
    assert one == two
    assert optuna.logging.get_verbosity() == level
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "result",
    [
        searched(lambda temperature, weight: 0.5),  # all alike
        searched(lambda temperature, weight: weight, GRID[:3]),  # too few
        searched(lambda temperature, weight: weight, GRID[:4]),  # one knob has one value
        searched(lambda temperature, weight: float("nan")),
    ],
)
def test_nothing_is_said_where_nothing_can_be(result):
    assert importances(result) == {}


def test_words_and_scores_that_are_not_numbers():
    grid = [(word, weight) for word in ("rows", "columns") for weight in (1, 2, 3)]
    scores = iter((0.1, 0.1, float("nan"), 0.4, 0.4, 0.4))
    found = importances(searched(lambda word, weight: next(scores), grid))
    assert found["temperature"] > 0.9


def test_where_values_lie():
    assert places([0.01, 0.1, 1.0]) == pytest.approx([-2, -1, 0])
    assert places([0.1, 1.0]) == [0.1, 1.0]
    assert places([0, 100]) == [0.0, 100.0]
    assert places(["rows", "none"]) == ["rows", "none"]
