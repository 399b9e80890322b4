"""How many times less a parameter-free recipe costs than a tuned one: the same question in several accountings.

Gienapp et al. (2025) report that their losses train 3 to 15 times faster than parametrized ones and do not say how that
was counted. So each way that one could count is told: over all that the search spent, with bad trials ended early if it
ended some; over a grid whose trials had all run to their end; to the best validation score of each run; and to a
validation score that both reach. Each in device seconds of training and in examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from orchestrator.records import Comparison, Progress, Result, Trial
from orchestrator.report.table import rows

UNITS: dict[str, Callable[[Progress], float]] = {
    "device s": lambda point: point.device_seconds,
    "examples": lambda point: float(point.examples),
}
WAYS = {
    "search": "the search as it ran",
    "grid": "every trial to its end",
    "best": "each run to its best validation",
    "quality": "to a validation that both reach",
}


class Counted(NamedTuple):
    """A parameter-free row against a tuned one: (way, unit) → how many times as much the tuned one needed.

    `stopped` of its `trials` were ended early; `validation` is the nDCG@10 of the way "quality".
    """

    row: str
    over: str
    trials: int
    stopped: int
    validation: float
    ratios: dict[tuple[str, str], float]


def accountings(comparison: Comparison) -> list[Counted]:
    """For each parameter-free row and each tuned one that it is compared with, where both run through the same
    examples: other batches or shares of the data would be another question.
    """
    table, results = {row.name: row for row in rows(comparison)}, {each.name: each for each in comparison.results}
    return [
        _counted(results[row.name], results[speed_up.over])
        for row in table.values()
        for speed_up in row.speed_ups
        if table[speed_up.over].kind == "tuned" and _comparable(results[row.name], results[speed_up.over])
    ]


def _comparable(one: Result, search: Result) -> bool:
    spent = [_sum(each.trials, _spent, UNITS["device s"]) for each in (one, search)]
    return min(spent) > 0 and _length(one) == _length(search) > 0


def _counted(one: Result, search: Result) -> Counted:
    chosen, tuned = one.winning_trial, search.winning_trial
    assert chosen is not None
    assert tuned is not None
    reached = min(_best(chosen), _best(tuned))

    def until(result: Result, winner: Trial, unit: Callable[[Progress], float]) -> float:
        others = [trial for trial in result.trials if trial.name != winner.name]
        return _sum(others, _spent, unit) + _until(winner, reached, unit)

    ratios = {}
    for name, unit in UNITS.items():
        whole = lambda trial, unit: _whole(trial, unit, _length(search))  # noqa: E731
        for way, cost in (("search", _spent), ("grid", whole), ("best", _to_best)):
            ratios[way, name] = _sum(search.trials, cost, unit) / _sum(one.trials, cost, unit)
        ratios["quality", name] = until(search, tuned, unit) / until(one, chosen, unit)
    stopped = sum(trial.state != "finished" for trial in search.trials)
    return Counted(one.name, search.name, len(search.trials), stopped, reached, ratios)


def _sum(
    trials: Sequence[Trial],
    cost: Callable[[Trial, Callable[[Progress], float]], float],
    unit: Callable[[Progress], float],
) -> float:
    return sum(cost(trial, unit) for trial in trials)


def _length(result: Result) -> int:
    """The examples of a run that is not ended early."""
    return max((trial.curve[-1].examples for trial in result.trials if trial.curve), default=0)


def _spent(trial: Trial, unit: Callable[[Progress], float]) -> float:
    return unit(trial.curve[-1]) if trial.curve else 0.0


def _whole(trial: Trial, unit: Callable[[Progress], float], examples: int) -> float:
    """What it would have cost to its end, at its own pace."""
    return _spent(trial, unit) * examples / trial.curve[-1].examples if trial.curve else 0.0


def _to_best(trial: Trial, unit: Callable[[Progress], float]) -> float:
    """Up to its highest validation; a trial that was ended early has been paid for up to there."""
    points = _validated(trial)
    if trial.state != "finished" or not points:
        return _spent(trial, unit)
    return unit(max(points, key=lambda point: point.validation or 0.0))


def _until(trial: Trial, validation: float, unit: Callable[[Progress], float]) -> float:
    """Up to where its learning curve, straight between two validations, reaches a score; at the first one that has it
    where none was before.
    """
    points = _validated(trial)
    if (points[0].validation or 0.0) >= validation:
        return unit(points[0])
    for before, after in pairwise(points):
        low, high = before.validation or 0.0, after.validation or 0.0
        if low < validation <= high:
            return unit(before) + (unit(after) - unit(before)) * (validation - low) / (high - low)
    return _spent(trial, unit)


def _best(trial: Trial) -> float:
    return max((point.validation or 0.0 for point in _validated(trial)), default=0.0)


def _validated(trial: Trial) -> list[Progress]:
    return [point for point in trial.curve if point.validation is not None]


def columns() -> Iterator[tuple[str, str]]:
    """(way, unit) of each ratio, in the order in which they are shown."""
    for way in WAYS:
        for unit in UNITS:
            yield way, unit
