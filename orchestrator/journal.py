"""The journal of a training run: what it reported, point by point, as it was reported."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from data import Stage
from orchestrator.records import Progress, costs_from_json
from orchestrator.training import Costs

JOURNAL = "journal.jsonl"


class Entry(NamedTuple):
    """A line of the journal: a point of the learning curve and, where it is validated, the costs so far."""

    point: Progress
    costs: Costs


class Journal:
    """What a run reported, one JSON line a point; a line that a kill cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Entry) -> None:
        """Add a line, and bring a validated one to the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"point": asdict(entry.point), "costs": [asdict(c) for c in entry.costs]}) + "\n")
            if entry.point.validation is not None:
                file.flush()
                os.fsync(file.fileno())

    def read(self) -> list[Entry]:
        """All whole lines, in order; called by the run itself, it also removes a line that was cut off."""
        entries, whole = self.tail(0)
        if self.path.exists() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)
        return entries

    @property
    def last(self) -> int:
        """The step of the last whole line, 0 where there is none."""
        entries, _ = self.tail(0)
        return entries[-1].point.step if entries else 0

    def tail(self, offset: int) -> tuple[list[Entry], int]:
        """The whole lines from byte `offset` on, and the offset after them; for those who watch a run."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:  # not begun; or its stage has been renamed while it was looked at
            return [], offset
        whole = content.rfind(b"\n") + 1
        values = [json.loads(line) for line in content[:whole].splitlines()]
        entries = [Entry(Progress(**value["point"]), costs_from_json(value["costs"])) for value in values]
        return entries, offset + whole


def reported(stage: Stage) -> list[Entry]:
    """What a run that is not finished has reported, on whichever machine it came furthest."""
    here, mirror = Journal(stage.partial / JOURNAL), stage.mirror
    if mirror is None:
        return here.tail(0)[0]
    with tempfile.TemporaryDirectory(prefix="stillhouse-journal-") as folder:
        there = Journal(Path(folder) / JOURNAL)
        mirror.bring(JOURNAL, there.path)
        return max(here, there, key=lambda journal: journal.last).tail(0)[0]
