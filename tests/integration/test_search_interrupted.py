"""Pins: a search by TPE with ASHA, and one that trains at different batch sizes and rates, which is killed on its way
and run again ends with the same trials as one that was not; a trial that diverges is told and the search goes on.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from flow import Flow

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROWS = (
    "--set", "training={batch_size: 8, epochs: 1, learning_rate: 2.0e-3, precision: fp32, validations: 2}",
    "--set", "recipes=[{recipe: static-margin, tune: {search: tpe, scheduler: asha, reduction_factor: 2, trials: 7, "
    "space: {target: {low: 0.1, high: 1}, training.learning_rate: [2.0e-3, 1.0e+30], training.batch_size: [4, 8]}}}]",
)  # fmt: skip


def trials(flow: Flow) -> list[tuple[object, ...]]:
    """The trials of the row in their order, but for what depends on the clock."""
    (row,) = flow.store.glob("searches/*/trials.json")
    return [
        (
            trial["name"],
            trial["state"],
            trial["reason"],
            [(point["step"], point["loss"], point["validation"]) for point in trial["curve"]],
        )
        for trial in json.loads(row.read_text())
    ]


@pytest.mark.timeout(600)
def test_killed_on_its_way(tmp_path: Path, fresh: Flow, prepared: Flow) -> None:
    whole = prepared.run("train", *ROWS)
    assert whole.status == 0, whole.errors
    expected = trials(prepared)
    assert len(expected) == 7
    assert {state for _, state, *_ in expected} == {"finished", "stopped", "failed"}
    (failed, *_), state, reason, curve = next(trial for trial in expected if trial[1] == "failed")
    assert reason.startswith("the loss is nan at step")

    def so_many(count: int) -> bool:
        return len([*fresh.store.glob("trials/*.partial"), *fresh.store.glob("trials/*/trial.json")]) >= count

    killed = fresh.run("train", *ROWS, until=lambda: so_many(6), by=signal.SIGKILL)
    assert killed.status == -signal.SIGKILL
    assert not [*fresh.store.glob("searches/*/manifest.json")]
    (points,) = fresh.store.glob("searches/*.partial/points.jsonl")
    before = points.read_text().splitlines()
    assert 6 <= len(before) <= 7

    again = fresh.run("train", *ROWS)
    assert again.status == 0, again.errors
    assert trials(fresh) == expected
    assert "failed: the loss is nan at step" in again.errors, "told again, and not trained again"
    (points,) = fresh.store.glob("searches/*/points.jsonl")
    assert points.read_text().splitlines()[: len(before)] == before
    assert fresh.run("train", *ROWS).errors.count("7 trial(s) reused") == 1
