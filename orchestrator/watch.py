"""Watching training runs by their journals, from the driver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

from data import Stage
from orchestrator.journal import JOURNAL, Entry, Journal

SECONDS = 0.5
Run = TypeVar("Run")


class Watch(Generic[Run]):
    """Calls `on_entries(run, entries)` for what runs add to their journals, from a thread, until it is left.

    What a journal held before is passed on first, so a run that goes on after a kill is seen from its beginning.
    """

    def __init__(self, runs: Sequence[tuple[Run, Stage]], on_entries: Callable[[Run, list[Entry]], None]) -> None:
        self._runs, self._on_entries = list(runs), on_entries
        self._offsets = [0] * len(runs)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def add(self, run: Run, stage: Stage) -> None:
        """Watch one run more."""
        self._offsets.append(0)
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
        self._look()

    def _look(self) -> None:
        for i, (run, stage) in enumerate(list(self._runs)):
            folder = stage.path if stage.here else stage.partial
            entries, self._offsets[i] = Journal(folder / JOURNAL).tail(self._offsets[i])
            if entries:
                self._on_entries(run, entries)
