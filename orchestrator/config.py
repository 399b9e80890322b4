"""The configuration: an experiment's YAML, checked, with every default filled in."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from data.errors import UserError
from orchestrator.config_checks import check, expected
from orchestrator.config_problems import Problem, in_words
from orchestrator.config_schema import (
    CollectionSettings,
    EncoderSettings,
    EvaluationSettings,
    ExpectedSettings,
    Experiment,
    NegativesSettings,
    RecipeSettings,
    ScalingSettings,
    Section,
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
    "Variant",
    "load",
    "resolved",
    "variants",
]

SomeSection = TypeVar("SomeSection", bound=Section)


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
    experiment = _checked(source)
    if experiment.vary:
        variants(path, overrides)
    return experiment


class Variant(NamedTuple):
    """One combination of what an experiment varies: thing → label, and the experiment that it makes."""

    labels: dict[str, str]
    experiment: Experiment


def variants(path: str | Path, overrides: Sequence[str] = ()) -> list[Variant]:
    """Every combination of what an experiment varies, in the order of the file; the last thing turns fastest.

    Each is an experiment that stands alone, under the name of the whole and its labels. Raises UserError as `load`.
    """
    whole = _checked(Source.read(Path(path), overrides))
    made: dict[str, Variant] = {}
    for choice in itertools.product(*whole.vary.values()):
        source, labels = Source.read(Path(path), overrides), dict(zip(whole.vary, choice, strict=True))
        for thing, label in labels.items():
            for key, value in whole.vary[thing][label].items():
                here = ("vary", thing, label, key)
                if key.partition(".")[0] in _WHOLE:
                    raise UserError(f'"{key}" is the whole study\'s', where=source.where(here), mend="Remove it.")
                source.put(key, copy.deepcopy(value), source.where(here))
        name = ".".join([whole.name, *(_slug(label) for label in choice)])
        if name in made:
            what = f"two settings have labels that make the same name, {name}"
            raise UserError(what, where=source.where(("vary",)), mend="Change one.")
        source.value |= {"name": name, "vary": {}, "expected": [], "tracking": whole.tracking.model_dump()}
        experiment, own = _checked(source), _expected_of(whole, labels)
        if problems := list(expected(experiment, own)):
            raise _refusal(source, problems)
        numbers = tuple(each.model_copy(update={"setting": {}}) for each in own.values())
        made[name] = Variant(labels, experiment.model_copy(update={"expected": numbers}))
    return list(made.values())


_WHOLE = ("name", "vary", "tracking", "store", "expected")  # what settings of a study cannot change


def _expected_of(study: Experiment, labels: dict[str, str]) -> dict[int, ExpectedSettings]:
    """What a study expects of a setting, by its place in the file."""
    return {place: each for place, each in enumerate(study.expected) if each.setting == labels}


def _slug(label: str) -> str:
    return re.sub("[^A-Za-z0-9_-]+", "-", label).strip("-") or "-"


def _checked(source: Source) -> Experiment:
    try:
        experiment = Experiment.model_validate(source.value)
    except ValidationError as error:
        raise _refusal(source, in_words(error)) from None
    problems = check(experiment)
    if problems:
        raise _refusal(source, problems)
    return _on_gpus(experiment) if experiment.scaling.gpus_per_worker else experiment


def _on_gpus(section: SomeSection) -> SomeSection:
    """The section with a precision of bf16 wherever in it none is named: the default is this machine's CPU's."""
    changed: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            changed[name] = _on_gpus(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            changed[name] = tuple(map(_on_gpus, value))
        elif name == "precision" and name not in section.model_fields_set:
            changed[name] = "bf16"
    return section.model_copy(update=changed)


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
