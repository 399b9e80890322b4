"""What a person sees while it runs: live bars on a terminal, plain lines in a job log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from orchestrator.journal import Entry
    from orchestrator.records import Trial
    from orchestrator.runs import RunSpec

SILENCE = 15.0  # seconds after which a job log gets a line


class Display:
    """Progress of an experiment, on standard error; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=_standard_error(), highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.console,
            transient=True,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began = self._wrote = time.monotonic()

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """A line that stays, with the time since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        self._wrote = time.monotonic()
        self._progress.console.print(f"[dim]{minutes:2d}:{seconds:02d}[/dim]  {escape(text)}")

    def shards(self, stage: str, done: int, total: int) -> None:
        """A stage made in shards: a bar, and a line when it is complete."""
        if done < total or stage in self._tasks:
            self._bar(stage, done, total)
            if done == total or (not self._live and done and done % math.ceil(total / 8) == 0):
                self.line(f"{stage}: {done}/{total}")

    def counting(self, total: int) -> Callable[[Trial], None]:
        """A bar over all training runs; call the result when one of them is over."""
        over = 0
        self._bar("all runs", 0, total)

        def one_is_over(trial: Trial) -> None:
            nonlocal over
            over += 1
            self._remove(trial.name)
            if trial.state == "failed":
                self.line(f"train {trial.name}  failed: {trial.reason}")
            self._bar("all runs", over, total)

        return one_is_over

    def point(self, run: RunSpec, entry: Entry, total_steps: int) -> None:
        """A point of a run's learning curve: the bar moves, and a validated one leaves a line.

        In a job log, so does one that comes when nothing was written for a while.
        """
        point = entry.point
        self._bar(run.name, point.step, total_steps, f"loss {point.loss:.4f}")
        if point.validation is None and (self._live or time.monotonic() - self._wrote < SILENCE):
            return
        margin = f"  margin {point.diagnostics['margin']:.2f}" if "margin" in point.diagnostics else ""
        score = "" if point.validation is None else f"  validation nDCG@10 {point.validation:.4f}"
        rate = "".join(
            f"  {point.examples / cost.wall_seconds:.1f} queries/s"
            for cost in entry.costs
            if cost.stage == "training" and cost.wall_seconds
        )
        self.line(f"train {run.name}  step {point.step}/{total_steps}  loss {point.loss:.4f}{margin}{score}{rate}")

    def _bar(self, name: str, done: int, total: int, note: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)
        if done >= total:
            self._remove(name)

    def _remove(self, name: str) -> None:
        if (task := self._tasks.pop(name, None)) is not None:
            self._progress.remove_task(task)


def _standard_error() -> TextIO:
    """Standard error by a descriptor of its own: what 2 stands for is changed while Ray starts (`cluster.connect`)."""
    try:
        if sys.stderr.fileno() == 2:
            return os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    except (AttributeError, OSError, ValueError):  # a test, or a notebook, has put something else there
        pass
    return sys.stderr
