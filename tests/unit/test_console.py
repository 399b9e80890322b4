"""Progress in a job log, pinned line by line: the clock, shards, points of a curve; nothing else is written."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from orchestrator import console as module
from orchestrator.config import TrainingSettings
from orchestrator.config_schema import StudentSettings
from orchestrator.console import Display
from orchestrator.journal import Entry
from orchestrator.records import Cost, Progress, Trial
from orchestrator.runs import RunSpec

RUN = RunSpec(
    row="static-margin",
    recipe="static-margin",
    loss="margin",
    parameters={"target": 0.3},
    knobs={"target": 0.3},
    training=TrainingSettings(),
    encoder=StudentSettings(model="m"),
    seed=13,
)
OVER = Trial(RUN.name, {"target": 0.3}, "finished", 0.7, (), ())


class Log:
    """A display on a stream that is no terminal, with a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.stream = io.StringIO()
        self.display = Display(Console(file=self.stream, force_terminal=False, width=60, soft_wrap=True))

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def point(step: int, validation: float | None, **diagnostics: float) -> Entry:
    progress = Progress(step, step * 32, 8.0, 0.03614, validation, diagnostics)
    costs = (Cost(stage="training", wall_seconds=4.0), Cost(stage="validation", wall_seconds=2.0))
    return Entry(progress, costs if validation is not None else ())


def test_lines_carry_the_time_and_are_not_wrapped(log: Log) -> None:
    with log.display:
        log.display.line("starting Ray")
        log.now = 754.9
        log.display.line("x" * 100)
        log.display.line("encoder.layers [0, 2] of [bold]")
    assert log.lines == [" 0:00  starting Ray", "12:34  " + "x" * 100, "12:34  encoder.layers [0, 2] of [bold]"]


@pytest.mark.parametrize(
    ("total", "lines"),
    [(32, range(4, 33, 4)), (15, [*range(2, 15, 2), 15]), (7, range(1, 8)), (106, [*range(14, 99, 14), 106])],
)
def test_shards_leave_some_eight_lines(log: Log, total: int, lines: Sequence[int]) -> None:
    with log.display:
        for done in range(total + 1):
            log.display.shards("tokens of documents", done, total)
    assert log.lines == [f" 0:00  tokens of documents: {done}/{total}" for done in lines]


def test_a_stage_that_was_there_leaves_no_line(log: Log) -> None:
    with log.display:
        log.display.shards("tokens of queries", 1, 1)
    assert log.lines == []


def test_a_validated_point_leaves_a_line(log: Log) -> None:
    with log.display:
        one_is_over = log.display.counting(2)
        log.display.point(RUN, point(7, None), 48)
        log.now = 61.0
        log.display.point(RUN, point(12, 0.61725, margin=0.5549), 48)
        log.display.point(RUN, point(48, 0.7), 48)
        one_is_over(OVER)
        one_is_over(replace(OVER, name="static-margin target=1", state="failed", reason="the loss is nan at step 5"))
    assert log.lines == [
        " 1:01  train static-margin target=0.3  step 12/48  loss 0.0361  margin 0.55  "
        "validation nDCG@10 0.6172  96.0 queries/s",
        " 1:01  train static-margin target=0.3  step 48/48  loss 0.0361  validation nDCG@10 0.7000  384.0 queries/s",
        " 1:01  train static-margin target=1  failed: the loss is nan at step 5",
    ]


def test_a_job_log_holds_no_control_characters(log: Log) -> None:
    with log.display:
        log.display.shards("s", 0, 2)
        log.display.point(RUN, point(12, 0.5), 48)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", log.stream.getvalue())


def test_a_terminal_keeps_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=True, width=200, color_system=None))
    with display:
        display.point(RUN, point(12, 0.5), 48)
        display.shards("s", 0, 2)
        display.shards("s", 2, 2)
        display.counting(1)(OVER)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert " 0:00  train static-margin target=0.3  step 12/48  loss 0.0361  validation nDCG@10 0.5000" in text
    assert " 0:00  s: 2/2" in text
    assert "s: 0/2" not in text
