"""Watching, pinned: every entry once and in order, those from before the watch first, across the rename of a finished
run, and to the end when the watch is left; runs are told apart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data import Stage, Store
from orchestrator import watch as module
from orchestrator.config import TrainingSettings
from orchestrator.config_schema import StudentSettings
from orchestrator.journal import JOURNAL, Entry, Journal
from orchestrator.records import Progress
from orchestrator.runs import RunSpec
from orchestrator.watch import Watch


def run(name: str) -> RunSpec:
    return RunSpec(
        row=name,
        recipe=name,
        loss="infonce",
        parameters={},
        knobs={},
        training=TrainingSettings(),
        encoder=StudentSettings(model="m"),
        seed=13,
    )


def entry(step: int) -> Entry:
    return Entry(Progress(step=step, examples=step, device_seconds=0.0, loss=0.5), ())


class Seen:
    """What a watch passed on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    def __call__(self, run: RunSpec, entries: list[Entry]) -> None:
        self.calls.append((run.name, [entry.point.step for entry in entries]))

    def steps(self, name: str) -> list[int]:
        return [step for run, steps in self.calls if run == name for step in steps]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    return {name: Store(tmp_path).stage("trials", 1, {"name": name}) for name in ("a", "b")}


def test_every_entry_once_and_in_order(stages: dict[str, Stage]) -> None:
    a, b, seen = stages["a"], stages["b"], Seen()
    a.partial.mkdir(parents=True)
    journal = Journal(a.partial / JOURNAL)
    journal.append(entry(1))  # from before a kill
    with Watch([(run(name), stage) for name, stage in stages.items()], seen):
        until(lambda: seen.steps("a") == [1])
        journal.append(entry(2))
        until(lambda: seen.steps("a") == [1, 2])
        with journal.path.open("a") as file:
            file.write('{"point": ')  # being written
        time.sleep(0.05)
        journal.read()

        def finish(partial: Path) -> None:
            Journal(partial / JOURNAL).append(entry(3))

        a.build(finish)
        b.build(lambda partial: [Journal(partial / JOURNAL).append(entry(step)) for step in (7, 8)] and None)
        until(lambda: seen.steps("a") == [1, 2, 3] and seen.steps("b") == [7, 8])
        time.sleep(0.05)
    assert (seen.steps("a"), seen.steps("b")) == ([1, 2, 3], [7, 8])
    assert all(steps for _, steps in seen.calls), "never without entries"


def test_leaving_looks_once_more(stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 1000)
    seen, stage = Seen(), stages["a"]
    before = threading.active_count()
    with Watch([(run("a"), stage)], seen):
        stage.build(lambda partial: Journal(partial / JOURNAL).append(entry(1)))
    assert seen.calls == [("a", [1])]
    assert threading.active_count() == before


def test_a_run_that_never_started_is_silent(stages: dict[str, Stage]) -> None:
    seen = Seen()
    with Watch([(run("a"), stages["a"])], seen):
        time.sleep(0.03)
    assert seen.calls == []
