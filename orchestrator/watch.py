"""Watching training runs by their journals, from the driver; runs on other machines by what is at the store's URI."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

from data import Stage, UserError
from orchestrator import cluster
from orchestrator.journal import JOURNAL, Entry, Journal, reported

SECONDS, FAR_SECONDS = 0.5, 5.0  # between two looks at what is on this machine, and at what is on others
log = logging.getLogger(__name__)
Run = TypeVar("Run")


class Watch(Generic[Run]):
    """Calls `on_entries(run, entries)` for what runs add to their journals, from a thread, until it is left.

    What a journal held before is passed on first, so a run that goes on after a kill is seen from its beginning.
    """

    def __init__(self, runs: Sequence[tuple[Run, Stage]], on_entries: Callable[[Run, list[Entry]], None]) -> None:
        self._runs, self._on_entries = list(runs), on_entries
        self._offsets, self._steps = [0] * len(runs), [0] * len(runs)
        self._far_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def add(self, run: Run, stage: Stage) -> None:
        """Watch one run more."""
        self._offsets.append(0)
        self._steps.append(0)
        self._runs.append((run, stage))

    def __enter__(self) -> Watch[Run]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS):
            self._look()
        self._far_at = 0.0
        self._look()

    def _look(self) -> None:
        far = time.monotonic() >= self._far_at
        if far:
            self._far_at = time.monotonic() + FAR_SECONDS
        for i, (run, stage) in enumerate(list(self._runs)):
            if far and stage.remote and not stage.here and cluster.several():
                entries = self._elsewhere(stage)
            else:
                folder = stage.path if stage.here else stage.partial
                entries, self._offsets[i] = Journal(folder / JOURNAL).tail(self._offsets[i])
            entries = [entry for entry in entries if entry.point.step > self._steps[i]]
            if entries:
                self._steps[i] = entries[-1].point.step
                self._on_entries(run, entries)

    def _elsewhere(self, stage: Stage) -> list[Entry]:
        """All that a run has reported that may be on another machine."""
        try:
            return Journal(stage.path / JOURNAL).tail(0)[0] if stage.done else reported(stage)
        except UserError as error:  # whoever needs it will say so
            log.warning("%s", error)
            return []
