"""How much each knob of a searched recipe matters for its validation score: fANOVA (Hutter et al. 2014, ICML).

A random forest is fitted to the trials, and its variance over the searched space is taken apart: the importance of a
knob is the share that it explains by itself. What is left is of knobs together. The forest has a seed, so the same
trials give the same numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from orchestrator.records import Result, Trial

LEAST_TRIALS = 4  # of fewer, two knobs cannot be told apart
_SEED = 0


def importances(result: Result) -> dict[str, float]:
    """Knob → its share of the variance of the validation score, 0 to 1, the greatest first.

    A trial that was stopped early counts with its last score. Empty where the search had less than two knobs, or too
    few trials, or where all came out alike.
    """
    trials = [trial for trial in result.trials if math.isfinite(trial.validation)]
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    trials = [trial for trial in trials if all(name in trial.parameters for name in names)]
    knobs = [name for name in names if len({trial.parameters[name] for trial in trials}) > 1]
    alike = len({trial.validation for trial in trials}) < 2
    return {} if len(knobs) < 2 or len(trials) < LEAST_TRIALS or alike else _fanova(trials, knobs)


def _fanova(trials: Sequence[Trial], knobs: Sequence[str]) -> dict[str, float]:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    columns: dict[str, list[float] | list[str]] = {
        knob: places([trial.parameters[knob] for trial in trials]) for knob in knobs
    }
    distributions: dict[str, BaseDistribution] = {
        knob: CategoricalDistribution(sorted({str(value) for value in column}))
        if isinstance(column[0], str)
        else FloatDistribution(min(map(float, column)), max(map(float, column)))
        for knob, column in columns.items()
    }
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # or it tells that a study was made
    try:
        study = optuna.create_study(direction="maximize")
        for number, trial in enumerate(trials):
            values = {knob: columns[knob][number] for knob in knobs}
            study.add_trial(
                optuna.trial.create_trial(params=values, distributions=distributions, value=trial.validation)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `normalize`
            evaluator = FanovaImportanceEvaluator(seed=_SEED)
            found = get_param_importances(study, evaluator=evaluator, normalize=False)
    finally:
        optuna.logging.set_verbosity(level)
    return {knob: float(share) for knob, share in found.items()}


def places(values: Sequence[float | int | str]) -> list[float] | list[str]:
    """Where the values of a knob lie: in logarithms where they span more than a power of ten; words as they are."""
    if any(isinstance(value, str | bool) for value in values):
        return [str(value) for value in values]
    numbers = [float(value) for value in values]
    if min(numbers) > 0 and max(numbers) / min(numbers) > 10:
        return [math.log10(number) for number in numbers]
    return numbers
