"""What a search tries next, as a pure function of its seed and of what was tried before: random points, or TPE's.

Nothing is kept between two suggestions: each has a sampler with a seed of its own, and is told the trials before it in
their order. So a search that goes on after a kill suggests what it would have suggested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orchestrator.records import Trial
from tune_spaces import Knob, Point, TuneSpace, Value

STARTUP = 5  # trials that TPE draws at random before it looks at any; the same for any number of trials
DIGITS = 4  # of a value that is drawn from a range: what is trained is what the tables say
TRIES = 100  # draws for a point that is new


class Tried(NamedTuple):
    """A point that was tried, and what came of it; None while it is under way."""

    point: Mapping[str, Value]
    trial: Trial | None


def suggest(
    space: TuneSpace, search: str, seed: int, tried: Sequence[Tried], *, side_by_side: bool = False
) -> Point | None:
    """The next point of a search, "random" or "tpe"; none that was tried, and None where there is no other.

    TPE is told the last validation of a finished trial, all validations of one that was ended early, and of a failed
    one that it was worse than all.

    Args:
        side_by_side: whether trials are under way while others are suggested; TPE then takes these for bad ones
            (the constant liar), so that it does not suggest their likes.
    """
    seen = {_key(each.point) for each in tried}
    number = len(tried)
    point = _draw(space, search, _seed(seed, number), tried, side_by_side)
    if _key(point) not in seen:
        return point
    if space.finite:
        others = [point for point in space.grid() if _key(point) not in seen]
        return others[_seed(seed, number, 1) % len(others)] if others else None
    for attempt in range(1, TRIES):
        point = _draw(space, "random", _seed(seed, number, attempt), (), False)
        if _key(point) not in seen:
            return point
    return None


def _draw(space: TuneSpace, search: str, seed: int, tried: Sequence[Tried], side_by_side: bool) -> Point:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = (
        optuna.samplers.TPESampler(n_startup_trials=STARTUP, constant_liar=side_by_side, seed=seed)
        if search == "tpe"
        else optuna.samplers.RandomSampler(seed=seed)
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {knob.parameter: _distribution(knob) for knob in space.knobs}
    for each in tried if search == "tpe" else ():
        study.add_trial(optuna.trial.create_trial(params=dict(each.point), distributions=distributions, **_told(each)))
    drawn = study.ask(distributions).params
    return {knob.parameter: _rounded(knob, drawn[knob.parameter]) for knob in space.knobs}


def _told(tried: Tried) -> dict[str, Any]:
    """What Optuna is told of a trial."""
    from optuna.trial import TrialState

    trial = tried.trial
    if trial is None:
        return {"state": TrialState.RUNNING}
    if trial.state == "finished":
        return {"state": TrialState.COMPLETE, "value": trial.validation}
    scores = [point.validation for point in trial.curve if point.validation is not None]
    seen = dict(enumerate(scores, 1)) if trial.state == "stopped" else {}
    return {"state": TrialState.PRUNED, "intermediate_values": seen}


def _distribution(knob: Knob) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if knob.range is None:
        return CategoricalDistribution(knob.values)
    return FloatDistribution(knob.range.low, knob.range.high, log=knob.range.log)


def _rounded(knob: Knob, value: Any) -> Value:
    if knob.range is None:
        chosen: Value = value
        return chosen
    return min(max(float(f"{value:.{DIGITS}g}"), knob.range.low), knob.range.high)


def _seed(seed: int, *numbers: int) -> int:
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])


def _key(point: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(point.items()))
