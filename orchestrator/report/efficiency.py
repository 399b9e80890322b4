"""Data efficiency: what share of the judged queries a recipe needs for the quality of another one.

The rows of a family differ in their share alone. Between two shares that were measured, quality is taken to be linear
in the logarithm of the share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from orchestrator.records import Comparison, Result

RESAMPLES = 999  # of the bootstrap
_BATCH = 64  # of them at once


@dataclass(frozen=True)
class Family:
    """A recipe at its shares of the training queries: `points` of (share, first measure), the smallest share first, and
    `rows`, the names of those that have them.

    A trained row that is alone has one point.
    """

    name: str
    parameter_free: bool
    points: tuple[tuple[float, float], ...]
    rows: tuple[str, ...] = ()

    @property
    def best(self) -> tuple[float, float]:
        """The point of the highest quality; of equals, that of the smallest share."""
        return max(self.points, key=lambda point: (point[1], -point[0]))


@dataclass(frozen=True)
class Reached:
    """The `share` at which a family first has the quality of another's best point; None where it never does. Where it
    is the smallest that was measured, a smaller one may be enough.
    """

    family: Family
    other: Family
    share: float | None


def families(comparison: Comparison) -> list[Family]:
    """All trained rows, those of a family together; none where no row has a family."""
    if not any(result.family for result in comparison.results):
        return []
    measure = comparison.measures[0]
    found: dict[str, list[Result]] = {}
    for result in sorted((result for result in comparison.results if result.trials), key=lambda each: each.share):
        found.setdefault(result.family or result.name, []).append(result)
    order = dict.fromkeys(result.family or result.name for result in comparison.results if result.trials)
    return [
        Family(
            name,
            found[name][0].parameter_free,
            tuple((result.share, result.measures[measure]) for result in found[name]),
            tuple(result.name for result in found[name]),
        )
        for name in order
    ]


def reached(found: Sequence[Family]) -> list[Reached]:
    """Of each parameter-free family with several shares, against each other family or row."""
    return [
        Reached(family, other, share_for(family.points, other.best[1]))
        for family in found
        if family.parameter_free and len(family.points) > 1
        for other in found
        if other is not family
    ]


def interval(each: Reached, values: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """The bootstrap's 95 % of the share, over the test queries; infinity stands for one that never has the quality.

    Args:
        values: row → query id → first measure, of the same queries for every row.
    """
    from scipy.stats import bootstrap

    best = each.other.rows[each.other.points.index(each.other.best)]
    rows = np.array([[values[row][query] for query in values[best]] for row in (*each.family.rows, best)])
    shares = [share for share, _ in each.family.points]
    if rows.shape[1] < 2:  # there is nothing to draw from
        return (math.inf, math.inf) if each.share is None else (each.share, each.share)

    def share(queries: npt.NDArray[np.int64], axis: int) -> npt.NDArray[np.float64]:
        means = rows[:, queries].mean(axis=axis).reshape(len(rows), -1).T.tolist()
        found = [share_for(list(zip(shares, own, strict=True)), quality) for *own, quality in means]
        return np.array([math.inf if one is None else one for one in found]).reshape(queries.shape[:-1])

    with np.errstate(invalid="ignore"):  # of infinity it makes no number, which is not asked for
        drawn = bootstrap(
            (np.arange(rows.shape[1]),),
            share,
            n_resamples=RESAMPLES,
            batch=_BATCH,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    low, high = np.quantile(drawn.bootstrap_distribution, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def share_for(points: Sequence[tuple[float, float]], quality: float) -> float | None:
    """The smallest share at which a line through points of (share, quality), linear in log share, has the quality."""
    if points[0][1] >= quality:
        return points[0][0]
    for (left, low), (right, high) in pairwise(points):
        if high >= quality:
            part = (quality - low) / (high - low)
            return math.exp(math.log(left) + part * math.log(right / left))
    return None
