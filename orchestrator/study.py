"""A study: the same comparison under every combination of what an experiment varies, and what holds over them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data import Store, UserError, fingerprint
from orchestrator.config import Experiment, Variant
from orchestrator.records import Comparison, comparison_from_json


@dataclass(frozen=True)
class Setting:
    """One combination, thing that varies → label, and the comparison that was made of it."""

    labels: dict[str, str]
    comparison: Comparison

    @property
    def name(self) -> str:
        """The labels: "three layers, 32"."""
        return ", ".join(self.labels.values())


@dataclass(frozen=True)
class Study:
    """A finished study; `things` are what varies. All comparisons have the same first measure."""

    name: str
    settings: tuple[Setting, ...]

    @property
    def things(self) -> list[str]:
        """What varies."""
        return list(self.settings[0].labels)

    @property
    def measure(self) -> str:
        """What the rows are compared by."""
        return self.settings[0].comparison.measures[0]

    @property
    def fingerprint(self) -> str:
        """What the study is known by: its comparisons."""
        return fingerprint({"study": self.name, "of": [each.comparison.fingerprint for each in self.settings]})

    @property
    def rows(self) -> list[str]:
        """The names of all rows, in the order of the comparisons."""
        return list(dict.fromkeys(each.name for setting in self.settings for each in setting.comparison.results))


def read(experiment: Experiment, variants: Sequence[Variant], command: str) -> Study:
    """The study of finished comparisons, as the store has them.

    Raises:
        UserError: one is not finished.
    """
    settings = []
    for variant in variants:
        name = variant.experiment.name
        file = folder(variant.experiment) / "comparison.json"
        if not file.is_file():
            raise UserError(
                f'"{name}" has no finished comparison in {variant.experiment.store}', mend=f"Run: {command}"
            )
        value = json.loads(file.read_text(encoding="utf-8"))
        settings.append(Setting(variant.labels, comparison_from_json(value)))
    return Study(experiment.name, tuple(settings))


def folder(experiment: Experiment) -> Path:
    """Where the report of an experiment or a study lies."""
    return Store(experiment.store).root / "reports" / experiment.name
