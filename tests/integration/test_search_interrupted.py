"""Pins: a search by TPE with ASHA, and one that trains at different batch sizes and rates, which is killed on its way
and run again ends with the same trials as one that was not; a trial that diverges is told and the search goes on.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import tiny_flow
from flow import Flow

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROWS = (
    "--set", "training={batch_size: 8, epochs: 1, learning_rate: 2.0e-3, precision: fp32, validations: 2}",
    "--set", "recipes=[{recipe: static-margin, tune: {search: tpe, scheduler: asha, reduction_factor: 2, trials: 8, "
    "space: {target: {low: 0.1, high: 1}, training.learning_rate: [5.0e-3, 1.0e-3, 1.0e+30], "
    "training.batch_size: [4, 8]}}}]",
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
def test_killed_on_its_way(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> None:
    whole, killed = (Flow(tmp_path / name) for name in ("whole", "killed"))
    for flow in (whole, killed):
        tiny_flow.write_experiment(flow.folder, tiny_collection, tiny_model)

    ended = whole.run("tune", *ROWS)
    assert ended.status == 0, ended.errors
    expected = trials(whole)
    assert len(expected) == 8
    assert {state for _, state, *_ in expected} == {"finished", "stopped", "failed"}
    assert all(reason.startswith("the loss is ") == (state == "failed") for _, state, reason, _ in expected)

    def started() -> int:
        """How many trials of the one that is killed."""
        return len([*killed.store.glob("trials/*.partial"), *killed.store.glob("trials/*/trial.json")])

    ended = killed.run("tune", *ROWS, until=lambda: started() >= 6, by=signal.SIGKILL)
    assert ended.status == -signal.SIGKILL
    assert not [*killed.store.glob("searches/*/manifest.json")]
    (points,) = killed.store.glob("searches/*.partial/points.jsonl")
    before = points.read_text().splitlines()
    assert 6 <= len(before) <= 8

    ended = killed.run("tune", *ROWS)
    assert ended.status == 0, ended.errors
    assert trials(killed) == expected
    assert "failed: the loss is " in ended.errors, "told again, and not trained again"
    (points,) = killed.store.glob("searches/*/points.jsonl")
    assert points.read_text().splitlines()[: len(before)] == before
