"""Whether an experiment's numbers come out again: what its section `expected` says, beside what a comparison found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.config import Experiment
from orchestrator.records import Comparison
from orchestrator.report import table

NO_NUMBERS = {"name", "store", "tracking"}  # sections on which none depends


class Check(NamedTuple):
    """A number that was looked for. `what` is a measure, or "speed-up over ROW"; `source` is who has `expected`.

    `setting` is that of a study, else "". `found` is None where the table has no such number: a speed-up where one of
    the rows took no device time, or theirs was counted on other kinds of device. `moved` says that it is not within
    `tolerance` of what was expected.
    """

    setting: str
    row: str
    what: str
    expected: float
    tolerance: float
    found: float | None
    moved: bool
    source: str


def check(experiment: Experiment, comparison: Comparison, setting: str = "") -> list[Check]:
    """Every number that the experiment expects, in its order."""
    rows = {row.name: row for row in table.rows(comparison)}
    checks = []
    for each in experiment.expected:
        row, found = rows[each.row], None
        if each.measure:
            what, found = each.measure, row.measures[each.measure]
        else:
            what = f"speed-up over {each.speed_up_over}"
            found = next((up.ratio for up in row.speed_ups if up.over == each.speed_up_over), None)
        moved = found is None or not within(found, each.value, each.tolerance)
        checks.append(Check(setting, each.row, what, each.value, each.tolerance, found, moved, each.source))
    return checks


def within(found: float, expected: float, tolerance: float) -> bool:
    """Whether two numbers differ by no more than a tolerance, which itself is allowed, however it is rounded."""
    return abs(found - expected) <= tolerance or math.isclose(abs(found - expected), tolerance, rel_tol=1e-9)


def changes(overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that can change a number."""
    return [each for each in overrides if each.partition("=")[0].partition(".")[0].strip() not in NO_NUMBERS]


def summary(checks: Sequence[Check]) -> str:
    """How many numbers came out, and how many moved, in a line."""
    moved = sum(check.moved for check in checks)
    said = f"{len(checks) - moved} of {len(checks)} numbers came out within their tolerance"
    return f"{said}, {moved} moved" if moved else said


def to_json(
    name: str, environment: Mapping[str, str], checks: Sequence[Check], changed: Sequence[str]
) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "experiment": name,
        "changed": list(changed),
        "environment": dict(environment),
        "moved": any(check.moved for check in checks),
        "checks": [check._asdict() for check in checks],
    }
