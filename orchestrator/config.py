"""The configuration: an experiment's YAML, checked, with every default filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from data.errors import UserError
from orchestrator.config_checks import check
from orchestrator.config_problems import Problem, in_words
from orchestrator.config_schema import (
    CollectionSettings,
    EncoderSettings,
    EvaluationSettings,
    Experiment,
    NegativesSettings,
    RecipeSettings,
    ScalingSettings,
    TrackingSettings,
    TrainingSettings,
    TuneSettings,
)
from orchestrator.config_source import Source, dump

__all__ = [
    "CollectionSettings",
    "EncoderSettings",
    "EvaluationSettings",
    "Experiment",
    "NegativesSettings",
    "RecipeSettings",
    "ScalingSettings",
    "TrackingSettings",
    "TrainingSettings",
    "TuneSettings",
    "load",
    "resolved",
]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment and check all of it before anything starts.

    Args:
        path: a YAML file.
        overrides: `a.b=value` each, as from `--set`: the value in YAML, the items of a list counted from 0
            (`recipes.0.tune.scheduler=asha`); a later one wins.

    Relative paths in it (`collection.path`, a folder as `encoder.model`, `store`) start at the current directory.
    Raises UserError: the first thing to mend, at `file:line: a.b` or `--set a.b`, and how many more there are.
    """
    source = Source.read(Path(path), overrides)
    try:
        experiment = Experiment.model_validate(source.value)
    except ValidationError as error:
        raise _refusal(source, in_words(error)) from None
    problems = check(experiment)
    if problems:
        raise _refusal(source, problems)
    return experiment


def resolved(experiment: Experiment) -> str:
    """The experiment as YAML with every default filled in; loading it gives an equal experiment."""
    return dump(experiment.model_dump(mode="json"))


def _refusal(source: Source, problems: list[Problem]) -> UserError:
    first = min(problems, key=lambda problem: (problem.missing, source.line(problem.path)))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    what, mend = _one_line(first.what + more), first.mend and _one_line(first.mend)
    return UserError(what, where=source.where(first.path), mend=mend)


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")  # of a value that is quoted in it
