"""What a person sees while it runs: live bars on a terminal, plain lines in a job log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from orchestrator.runs import RunSpec
    from orchestrator.trial import Entry


class Display:
    """Progress of an experiment, on standard error; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
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
        self._began = time.monotonic()

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
        self._progress.console.print(f"[dim]{minutes:2d}:{seconds:02d}[/dim]  {escape(text)}")

    def shards(self, stage: str, done: int, total: int) -> None:
        """A stage made in shards: a bar, and a line when it is complete."""
        if done < total or stage in self._tasks:
            self._bar(stage, done, total)
            if done == total or (not self._live and done % max(1, total // 8) == 0):
                self.line(f"{stage}: {done}/{total} shards")

    def runs(self, finished: int, total: int) -> None:
        """How many of the training runs are over."""
        self._bar("runs", finished, total)

    def point(self, run: RunSpec, entry: Entry, total_steps: int) -> None:
        """A point of a run's learning curve: the bar moves, and a validated one leaves a line."""
        point = entry.point
        self._bar(run.name, point.step, total_steps, f"loss {point.loss:.4f}")
        if point.validation is None:
            return
        (training,) = (cost for cost in entry.costs if cost.stage == "training")
        rate = point.examples / training.wall_seconds if training.wall_seconds else 0.0
        margin = f"  margin {point.diagnostics['margin']:.2f}" if "margin" in point.diagnostics else ""
        self.line(
            f"train {run.name}  step {point.step}/{total_steps}  loss {point.loss:.4f}{margin}  "
            f"validation nDCG@10 {point.validation:.4f}  {rate:.1f} queries/s"
        )

    def over(self, run: RunSpec) -> None:
        """A run's bar goes away."""
        if (task := self._tasks.pop(run.name, None)) is not None:
            self._progress.remove_task(task)

    def _bar(self, name: str, done: int, total: int, note: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(name))
