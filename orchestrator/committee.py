"""Several teachers at once: their scores of a pair are averaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data import Batch, Stage, UserError
from data.pair_scores import Space
from losses import Signals
from orchestrator.config_checks import no_mean
from orchestrator.config_schema import TeacherSettings
from orchestrator.records import Cost
from orchestrator.runs import RunSpec
from orchestrator.teaching import SCORES, Taught, Teaching

if TYPE_CHECKING:
    from orchestrator.workspace import Workspace


class Committee(Teaching):
    """Teachers whose scores are of one space."""

    def __init__(self, workspace: Workspace, settings: TeacherSettings) -> None:
        super().__init__(workspace, settings)
        self.members = [Teaching(workspace, member, key) for key, member in settings.members]

    def open(self, taught: Taught) -> None:
        """Take what the driver made: a worker reads the store and nothing else."""
        self.identity, self.space = json.loads(taught.identity), taught.space
        for number, member in enumerate(self.members):
            own = [(name.split(":", 1)[1], folder) for name, folder in taught.folders if name.startswith(f"{number}:")]
            member.open(Taught(json.dumps(self.identity["average"][number]), tuple(own), self.space))

    @cached_property
    def space(self) -> Space:
        """What a score of each teacher is."""
        return self.members[0].space

    def check(self) -> None:
        """Refuse a teacher that cannot be loaded, does not take the lengths, or scores in another space.

        Raises:
            UserError: in each case.
        """
        for number, member in enumerate(self.members):
            member.check()
            if told := no_mean(self.space, member.space):
                raise UserError(told[0], where=f"teacher.average.{number}", mend=told[1])

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """All that the teachers' answers depend on but the texts."""
        return {"average": [dict(member.identity) for member in self.members]}

    @cached_property
    def folders(self) -> Mapping[str, Path]:
        """The finished stages by teacher and what is in them, made unless they are there."""
        return {
            f"{number}:{name}": folder
            for number, member in enumerate(self.members)
            for name, folder in member.folders.items()
        }

    @property
    def stages(self) -> list[Stage] | None:
        """Where the answers are kept; None where tokens or negatives have to be made to know it."""
        found = [member.stages for member in self.members]
        return None if None in found else [stage for stages in found for stage in stages or []]

    @property
    def in_words(self) -> str:
        """Who teaches, and what."""
        return "the mean of " + "; ".join(member.in_words for member in self.members)

    @property
    def trained_in_words(self) -> list[str]:
        """How good the cross-encoders among them are that were trained to teach."""
        return [line for member in self.members for line in member.trained_in_words]

    def signals(self, run: RunSpec) -> Callable[[Batch], Signals] | None:
        """What the teachers say of a batch, in the mean; None where the loss asks nothing of them."""
        if SCORES not in run.teacher_needs:
            return None
        asked = [say for member in self.members if (say := member.signals(run)) is not None]

        def mean(batch: Batch) -> Signals:
            scores = [found.scores for say in asked if (found := say(batch)).scores is not None]
            return Signals(scores=torch.stack(scores).mean(dim=0), space=self.space)

        return mean

    @property
    def costs(self) -> dict[str, Cost]:
        """What it cost to ask the teachers, by stage of the store."""
        return {name: cost for member in self.members for name, cost in member.costs.items()}
