"""Data efficiency: what share of the judged queries a recipe needs for the quality of another one.

The rows of a family differ in their share alone. Between two shares that were measured, quality is taken to be linear
in the logarithm of the share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.records import Comparison


@dataclass(frozen=True)
class Family:
    """A recipe at its shares of the training queries: `points` of (share, first measure), the smallest share first.

    A trained row that is alone has one point.
    """

    name: str
    parameter_free: bool
    points: tuple[tuple[float, float], ...]

    @property
    def best(self) -> tuple[float, float]:
        """The point of the highest quality; of equals, that of the smallest share."""
        return max(self.points, key=lambda point: (point[1], -point[0]))


@dataclass(frozen=True)
class Reached:
    """The `share` at which a family first has the quality of another's best point; None where it never does.

    `at_least` says that the smallest measured share is enough already, so that a smaller one may be.
    """

    family: Family
    other: Family
    share: float | None
    at_least: bool


def families(comparison: Comparison) -> list[Family]:
    """All trained rows, those of a family together; none where no row has a family."""
    if not any(result.family for result in comparison.results):
        return []
    measure = comparison.measures[0]
    found: dict[str, Family] = {}
    for result in (result for result in comparison.results if result.trials):
        name = result.family or result.name
        before = found[name].points if name in found else ()
        points = tuple(sorted({*before, (result.share, result.measures[measure])}))
        found[name] = Family(name, result.parameter_free, points)
    return list(found.values())


def reached(found: Sequence[Family]) -> list[Reached]:
    """Of each parameter-free family with several shares, against each other family or row."""
    return [
        Reached(family, other, share_for(family.points, other.best[1]), family.points[0][1] >= other.best[1])
        for family in found
        if family.parameter_free and len(family.points) > 1
        for other in found
        if other is not family
    ]


def share_for(points: Sequence[tuple[float, float]], quality: float) -> float | None:
    """The smallest share at which a line through points of (share, quality), linear in log share, has the quality."""
    if points[0][1] >= quality:
        return points[0][0]
    for (left, low), (right, high) in pairwise(points):
        if high >= quality:
            part = (quality - low) / (high - low)
            return math.exp(math.log(left) + part * math.log(right / left))
    return None
