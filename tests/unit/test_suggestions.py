"""What a search tries next, pinned: a function of the seed and of what was tried, in the ranges and among the values,
never a point twice; TPE goes where finished trials were good and away from failed ones and those under way.
"""

from __future__ import annotations

import math

import pytest

from orchestrator.records import Progress, Trial
from orchestrator.suggestions import STARTUP, Tried, suggest
from tune_spaces import Knob, Point, Range, TuneSpace

TEMPERATURE = Knob("temperature", (0.05,), "made up", Range(0.01, 0.2, log=True))
SIZE = Knob("training.batch_size", (8, 16, "85 tokens"), "made up")
BOTH, SIZES = TuneSpace("both", (TEMPERATURE, SIZE)), TuneSpace("sizes", (SIZE,))


def trial(validation: float, state: str = "finished", scores: tuple[float, ...] = ()) -> Trial:
    curve = tuple(Progress(step, step, 0.0, 0.5, score) for step, score in enumerate(scores, 1))
    return Trial("t", {}, state, validation, curve, ())


def quality(point: Point) -> float:
    """Best at 0.02 and 16."""
    return 1 - abs(math.log10(point["temperature"] / 0.02)) - 0.3 * (point["training.batch_size"] != 16)


def search(kind: str, seed: int, count: int, tried: list[Tried] | None = None) -> list[Tried]:
    """Goes on for so many trials."""
    tried = [*(tried or ())]
    for _ in range(count):
        point = suggest(BOTH, kind, seed, tried)
        assert point is not None
        tried.append(Tried(point, trial(quality(point))))
    return tried


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_the_same_again_and_after_any_interruption(kind: str) -> None:
    whole = search(kind, 13, 12)
    assert search(kind, 13, 12) == whole
    for reached in (3, 7, 11):
        assert search(kind, 13, 12 - reached, whole[:reached]) == whole
    assert search(kind, 14, 12) != whole


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_points_are_in_the_ranges_and_among_the_values(kind: str) -> None:
    points = [each.point for each in search(kind, 3, 40)]
    assert all(0.01 <= point["temperature"] <= 0.2 for point in points)
    assert {point["training.batch_size"] for point in points} == {8, 16, "85 tokens"}
    assert all(f"{point['temperature']:.4g}" == f"{point['temperature']}" for point in points), "four digits"


def test_a_logarithmic_range_is_drawn_by_orders_of_magnitude() -> None:
    wide = TuneSpace("wide", (Knob("x", (), "made up", Range(1e-4, 1.0, log=True)),))
    flat = TuneSpace("flat", (Knob("x", (), "made up", Range(1e-4, 1.0)),))
    below = {
        space.recipe: sum(suggest(space, "random", seed, ())["x"] < 0.01 for seed in range(200))
        for space in (wide, flat)
    }
    assert 75 <= below["wide"] <= 125
    assert below["flat"] <= 10


def test_tpe_looks_at_what_came_of_its_trials() -> None:
    random, tpe = search("random", 5, 30), search("tpe", 5, 30)
    assert tpe[:STARTUP] == random[:STARTUP], "it begins at random"
    means = [
        sum(each.trial.validation for each in found[STARTUP:]) / (30 - STARTUP)
        for found in (random, tpe)
        if all(each.trial for each in found)
    ]
    assert means[1] > means[0] + 0.1


SPREAD = (0.011, 0.014, 0.018, 0.021, 0.027, 0.035, 0.05, 0.07, 0.1, 0.15, 0.19)


def nearest(tried: list[Tried], to: float, side_by_side: bool = False) -> float:
    """The mean distance of suggestions to a temperature, in orders of magnitude."""
    one = TuneSpace("one", (TEMPERATURE,))
    found = [suggest(one, "tpe", seed, tried, side_by_side=side_by_side)["temperature"] for seed in range(30)]
    return sum(abs(math.log10(value / to)) for value in found) / len(found)


def test_tpe_keeps_away_from_failed_trials_and_from_those_under_way() -> None:
    good = [Tried({"temperature": 0.02 + i / 1000}, trial(0.5 + i / 100)) for i in range(5)]
    high = [Tried({"temperature": 0.15 + i / 100}, trial(0.0, "failed")) for i in range(3)]
    assert nearest([*good, *high], 0.16) > nearest(good, 0.16)
    spread = [Tried({"temperature": at}, trial(1 - abs(math.log10(at / 0.02)))) for at in SPREAD]
    waiting = [Tried({"temperature": 0.02 + i / 10000}, None) for i in range(1, 9)]
    unaware, aware = (nearest([*spread, *waiting], 0.02, side_by_side=side) for side in (False, True))
    assert aware > unaware + 0.1


def test_a_trial_that_was_ended_early_is_worse_than_any_that_was_not() -> None:
    """Its last score is the highest, and it was taken where those of others are to be had for longer runs."""
    good = [Tried({"temperature": 0.02 + i / 1000}, trial(0.5)) for i in range(3)]
    early = [Tried({"temperature": 0.15 + i / 100}, trial(0.9, "stopped", (0.9,))) for i in range(3)]
    assert nearest([*good, *early], 0.02) < nearest([*good, *early], 0.16)


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_no_point_is_tried_twice_and_a_small_space_comes_to_an_end(kind: str) -> None:
    tried: list[Tried] = []
    while (point := suggest(SIZES, kind, 1, tried)) is not None:
        tried.append(Tried(point, trial(0.5)))
    assert sorted(str(each.point["training.batch_size"]) for each in tried) == ["16", "8", "85 tokens"]
    narrow = TuneSpace("narrow", (Knob("x", (), "made up", Range(0.1, 0.1002)),))  # three numbers of four digits
    tried = []
    while (point := suggest(narrow, kind, 1, tried)) is not None:
        tried.append(Tried(point, trial(0.5)))
    assert sorted(each.point["x"] for each in tried) == [0.1, 0.1001, 0.1002]
