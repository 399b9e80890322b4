"""The search of a row, without Ray: which trials it has started, what they came to, and whether there is a next one.

Where the trials of a row depend on what others came to, or are drawn, the points are written to a journal in the stage
of the search before they are trained: after a kill the i-th trial is the i-th point of the journal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from data import Stage, UserError
from data.store import Json
from orchestrator.config import RecipeSettings
from orchestrator.config_schema import TuneSettings
from orchestrator.records import Trial
from orchestrator.runs import RunSpec, first_run, points_of, run_at, runs_of, space_of
from orchestrator.suggestions import Tried, suggest
from orchestrator.trial import failure_of, trial_of
from orchestrator.workspace import Workspace
from tune_spaces import Point, TuneSpace

VERSION = 1
POINTS = "points.jsonl"
_FIRST_KEYS = {"search", "scheduler", "reduction_factor", "space"}  # those that a search is known by at their defaults


def search_stage(workspace: Workspace, row: RecipeSettings) -> Stage:
    """What the trials of a row came to, stopped and failed ones included."""
    tune = None if row.tune is None else _known_by(row.tune)
    if points_of(row) is None:
        inputs: dict[str, Json] = {
            "row": row.name,
            "first": workspace.trial(first_run(workspace.experiment, row)).fingerprint,
            "space": _space_known_by(space_of(row)),
            "tune": tune,
        }
    else:
        runs = runs_of(workspace.experiment, row)
        inputs = {
            "trials": [workspace.trial(run).fingerprint for run in runs],
            "names": [run.name for run in runs],
            "tune": tune,
        }
    return workspace.store.stage("searches", VERSION, inputs)


def chosen_on_the_way(row: RecipeSettings) -> bool:
    """Whether it takes the row's first trials to know which others there are."""
    tune = row.tune
    return tune is not None and (tune.drawn or tune.device_seconds is not None or tune.patience is not None)


def started_runs(workspace: Workspace, row: RecipeSettings) -> tuple[RunSpec, ...]:
    """The runs of a row in the order of their start; where they are chosen on the way, those that were so far."""
    if not chosen_on_the_way(row):
        return runs_of(workspace.experiment, row)
    points = Points(search_stage(workspace, row)).points
    return tuple(run_at(workspace.experiment, row, point) for point in points)


def trials_of(workspace: Workspace, runs: Sequence[RunSpec]) -> tuple[Trial, ...]:
    """What the runs came to, from the store."""
    return tuple(trial_of(workspace, run) for run in runs)


def winner_of(trials: Sequence[Trial]) -> Trial:
    """The finished trial with the best last validation; the first of equals."""
    return max((trial for trial in trials if trial.state == "finished"), key=lambda trial: trial.validation)


class Points:
    """The journal of a search: its points in the order in which they were chosen, and why there are no more.

    A line that a kill cut off is dropped.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @property
    def points(self) -> list[Point]:
        """The points so far."""
        return [line["point"] for line in self._lines() if "point" in line]

    @property
    def ended(self) -> bool:
        """Whether there are no more to come."""
        return any("end" in line for line in self._lines())

    def add(self, point: Point) -> None:
        """Add a point; it is on the disk when this returns."""
        self._append({"point": point})

    def end(self, reason: str) -> None:
        """There are no more, because of the `reason`."""
        self._append({"end": reason})

    def _lines(self) -> list[dict[str, Any]]:
        file = (self._stage.path if self._stage.here else self._stage.partial) / POINTS
        content = file.read_bytes() if file.is_file() else b""
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def _append(self, line: dict[str, Any]) -> None:
        file: Path = self._stage.partial / POINTS
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as journal:
            journal.seek(0)
            content = journal.read()
            journal.truncate(content.rfind(b"\n") + 1)
            journal.write(json.dumps(line).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())


class Search(Protocol):
    """What says which run is next."""

    def next(self) -> RunSpec | None:
        """The next run; None where there is none, or none any more."""
        ...

    def ended(self, run: RunSpec) -> Trial:
        """What a run came to that has ended; it is taken into account from now on."""
        ...

    def failure(self) -> UserError | None:
        """What there is to mend before anything else is trained."""
        ...


class RowSearch:
    """The search of one row on its way.

    Args:
        side_by_side: whether several trials are under way at once.
    """

    def __init__(self, workspace: Workspace, row: RecipeSettings, side_by_side: bool) -> None:
        self.row, self._workspace, self._side_by_side = row, workspace, side_by_side
        self._space, self._tune, self._fixed = space_of(row), row.tune or TuneSettings(), points_of(row)
        self._points = Points(search_stage(workspace, row)) if chosen_on_the_way(row) else None
        self._known = self._points.points if self._points else []
        self._runs: list[RunSpec] = []
        self._ended: dict[int, Trial] = {}
        self._over = False

    def next(self) -> RunSpec | None:
        """The next run; None where there is none, or none any more."""
        number = len(self._runs)
        if self._points and number >= len(self._known):
            self._known = self._points.points  # another process may be at the same search
        point = self._known[number] if number < len(self._known) else self._choose(number)
        if point is None:
            self._over = True
            return None
        run = run_at(self._workspace.experiment, self.row, point)
        self._runs.append(run)
        return run

    def ended(self, run: RunSpec) -> Trial:
        """What a run came to that has ended; it is taken into account from now on."""
        trial = trial_of(self._workspace, run)
        self._ended[self._runs.index(run)] = trial
        return trial

    def failure(self) -> UserError | None:
        """What there is to mend where all trials of the row have failed, and there are no others."""
        trials = self._ended.values()
        if not self._over or len(trials) < len(self._runs) or any(trial.state != "failed" for trial in trials):
            return None
        several = f"all {len(trials)} trials of {self.row.name} failed, the last one"
        return _mendable(self._workspace, self._runs[max(self._ended)], several if len(trials) > 1 else self.row.name)

    def _choose(self, number: int) -> Point | None:
        if self._points is None:
            assert self._fixed is not None
            return self._fixed[number] if number < len(self._fixed) else None
        if self._points.ended:
            return None
        point, reason = None, self._spent(number)
        if reason is None:
            point = self._draw() if self._fixed is None else self._fixed[number]
            reason = "no other point"
        if point is None:
            self._points.end(reason)
        else:
            self._points.add(point)
        return point

    def _draw(self) -> Point | None:
        tried = [Tried(run.knobs, self._ended.get(i)) for i, run in enumerate(self._runs)]
        seed = self._workspace.experiment.seed
        return suggest(self._space, self._tune.search, seed, tried, side_by_side=self._side_by_side)

    def _spent(self, number: int) -> str | None:
        """Which budget is spent once there are so many trials."""
        tune = self._tune
        most = len(self._fixed) if self._fixed is not None else tune.most_trials
        if most is not None and number >= most:
            return "trials"
        if tune.device_seconds is not None:
            trials = trials_of(self._workspace, self._runs)  # those under way too
            if sum(cost.device_seconds for trial in trials for cost in trial.costs) >= tune.device_seconds:
                return "device_seconds"
        if tune.patience is not None and _without_gain(self._ended) >= tune.patience:
            return "patience"
        return None


class Again:
    """Runs that are made again with further seeds: a search that has nothing to choose."""

    def __init__(self, workspace: Workspace, runs: Sequence[RunSpec]) -> None:
        self._workspace, self._rest, self._failed = workspace, list(runs), list[RunSpec]()

    def next(self) -> RunSpec | None:
        """The next run; None where there is none."""
        return self._rest.pop(0) if self._rest else None

    def ended(self, run: RunSpec) -> Trial:
        """What a run came to that has ended."""
        trial = trial_of(self._workspace, run)
        if trial.state == "failed":
            self._failed.append(run)
        return trial

    def failure(self) -> UserError | None:
        """What there is to mend where one has failed: a mean over the others would hide it."""
        return _mendable(self._workspace, self._failed[0], self._failed[0].name) if self._failed else None


def _mendable(workspace: Workspace, run: RunSpec, who: str) -> UserError:
    """Why a run failed, as what a user can mend."""
    stage = workspace.trial(run)
    found = failure_of(stage)
    assert found is not None
    mend = f"{found.mend} To try the same again, remove {stage.partial}."
    return UserError(f"{who}: {found.reason}", where=found.where, mend=mend)


def _without_gain(ended: dict[int, Trial]) -> int:
    """How many trials there were since the last one that was better than all before it."""
    best, since = float("-inf"), 0
    for _, trial in sorted(ended.items()):
        better = trial.state == "finished" and trial.validation > best
        best, since = (trial.validation, 0) if better else (best, since + 1)
    return since


def _known_by(tune: TuneSettings) -> Json:
    """The settings of a search, without those that were added since and say nothing."""
    defaults = TuneSettings().model_dump()
    return {key: value for key, value in tune.model_dump().items() if key in _FIRST_KEYS or value != defaults[key]}


def _space_known_by(space: TuneSpace) -> Json:
    """What is drawn from: the range of each knob, or its values."""
    return {
        knob.parameter: [knob.range.low, knob.range.high, knob.range.log] if knob.range else list(knob.values)
        for knob in space.knobs
    }
