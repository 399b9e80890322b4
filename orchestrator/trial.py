"""One training run, made durable: a journal of what it reported, checkpoints, and the trained encoder at the end.

A run lives in a stage of the store. What it reports is appended to `journal.jsonl` first and passed on second. Run
again, it passes on what the journal holds, goes on from its newest checkpoint, and does nothing if it is finished.
So a search that was killed sees the same values in the same order when it is run again. A run that has failed
(diverged, or out of memory) says so in its stage, and is not trained again.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from data import Stage, UserError
from data.mirror import TEMPORARY, mirror_of
from orchestrator.checkpoints import system_errors
from orchestrator.encoder import BiEncoder, Tower, save_encoder, save_towers
from orchestrator.group import Group
from orchestrator.journal import JOURNAL, Entry, Journal, reported
from orchestrator.records import Progress, Trial, costs_from_json, to_json, trial_from_json
from orchestrator.refresh import Refresh
from orchestrator.runs import RunSpec
from orchestrator.spread import Spread, checkpoints_in
from orchestrator.training import Costs, DivergedError, train
from orchestrator.workspace import MODEL, Workspace

RECORD = "trial.json"
FAILURE = "failure.json"  # in the partial stage of a run that has failed


class Failure(NamedTuple):
    """Why a run has failed, as a UserError says it, and what it had cost by then; None: as its journal says."""

    reason: str
    where: str
    mend: str
    costs: Costs | None = None


class TrialFailedError(UserError):
    """A run has diverged, or ran out of memory: the search goes on without it."""

    def __reduce__(self) -> tuple[object, ...]:
        return _failed, (self.what, self.where, self.mend)


def _failed(what: str, where: str | None, mend: str | None) -> TrialFailedError:
    return TrialFailedError(what, where=where, mend=mend)


def run_trial(
    workspace: Workspace, run: RunSpec, report: Callable[[Progress], None], group: Group | None = None
) -> None:
    """Train one run to its end, or go on where it was; every rank of the group calls it.

    Args:
        report: called on every rank with each validated point, old ones first. It may raise to end the run early. The
            last point is reported when the trained encoder is in the store.

    Raises:
        TrialFailedError: the run has diverged or ran out of memory, now or before.
    """
    group, workspace = group or Group(), workspace.for_run(run)
    stage = workspace.trial(run)
    if not _done(stage, group):
        known = failure_of(stage)
        failure = known or _attempt(workspace, run, stage, report, group)
        if known:
            for entry in reported(stage):
                if entry.point.validation is not None:
                    report(entry.point)
        if failure:
            raise TrialFailedError(failure.reason, where=failure.where, mend=failure.mend)
        group.wait()
        if not stage.done:  # brought here from the machine of rank 0
            raise not_kept(stage)
        if group.rank and stage.remote:  # it is there on other machines than that of rank 0
            shutil.rmtree(stage.partial, ignore_errors=True)
        last = read_trial(stage, run).curve[-1:]
    else:
        last = read_trial(stage, run).curve
    for point in last:
        if point.validation is not None:
            report(point)


def _attempt(
    workspace: Workspace, run: RunSpec, stage: Stage, report: Callable[[Progress], None], group: Group
) -> Failure | None:
    """Train; what the run failed of, if it did, is in its stage then."""
    try:
        if group.rank == 0:
            stage.build(lambda partial: _train(workspace, run, partial, report, group))
        else:
            _train(workspace, run, stage.partial, report, group)
        return None
    except DivergedError as error:
        failure = Failure(error.what, error.where or "", error.mend or "", error.costs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = out_of_memory(run)
    fail(stage, failure)
    gc.collect()  # what the error held is no more; the process is used for the next trial
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failure


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the device, or of the machine, was too small."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def out_of_memory(run: RunSpec) -> Failure:
    """The failure of a run that needs more memory than there is."""
    budget = run.training.activation_tokens
    mend = f"Lower it ({budget}), or training.batch_size, or take a device with more memory."
    return Failure("out of memory", "training.activation_tokens", mend)


def fail(stage: Stage, failure: Failure) -> None:
    """Say in the stage of a run that it has failed; its checkpoints, which may be of diverged weights, are removed."""
    stage.partial.mkdir(parents=True, exist_ok=True)
    written = stage.partial / f"{FAILURE}.{os.getpid()}{TEMPORARY}"
    costs = None if failure.costs is None else [to_json(cost) for cost in failure.costs]
    with written.open("w", encoding="utf-8") as file:
        json.dump({**failure._asdict(), "costs": costs}, file)
        file.flush()
        os.fsync(file.fileno())
    written.rename(stage.partial / FAILURE)
    checkpoints_in(stage.partial).clear()
    Refresh.clear(stage.partial)
    if mirror := stage.mirror:
        mirror.keep(stage.partial / FAILURE)
        mirror.forget_runs()


def failure_of(stage: Stage) -> Failure | None:
    """Why a run has failed, on whichever machine; None where it has not."""
    file = stage.partial / FAILURE
    if not file.is_file() and (mirror := stage.mirror):
        with tempfile.TemporaryDirectory(prefix="stillhouse-failure-") as folder:
            return _read_failure(Path(folder) / FAILURE) if mirror.bring(FAILURE, Path(folder) / FAILURE) else None
    return _read_failure(file) if file.is_file() else None


def _read_failure(file: Path) -> Failure:
    value = json.loads(file.read_text(encoding="utf-8"))
    costs = None if value["costs"] is None else costs_from_json(value["costs"])
    return Failure(**{**value, "costs": costs})


def _done(stage: Stage, group: Group) -> bool:
    """Whether the run is finished, the same on every rank."""
    done = stage.done
    if stage.remote is None or group.size == 1:
        return done
    if done:
        stage.build(_never)  # goes to where the store is kept, unless it is there
    group.wait()
    return group.total(float(stage.done)) == group.size


def _never(partial: Path) -> None:
    raise AssertionError


def not_kept(stage: Stage) -> UserError:
    """What is said of a run that is not where the store is kept, and should be."""
    assert stage.remote is not None
    return UserError(
        f"{stage.remote.uri} does not have a run that was finished on another machine, {stage.name}/{stage.path.name}",
        where="store",
        mend="Run again, when every machine of the cluster can write there.",
    )


@system_errors()
def _train(workspace: Workspace, run: RunSpec, partial: Path, report: Callable[[Progress], None], group: Group) -> None:
    spread = Spread(partial, group)
    journal, checkpoints, mirror = Journal(partial / JOURNAL), checkpoints_in(partial), mirror_of(partial)
    plan = workspace.plan(run.training)
    known = journal.read()
    for entry in known:
        _pass_on(entry.point, plan.total_steps, report)
    known_steps = known[-1].point.step if known else 0

    def on_progress(point: Progress, costs: Costs) -> None:
        if point.step <= known_steps:
            return  # gone over again after a kill; the journal has it
        if group.rank == 0:
            journal.append(Entry(point, costs))
            if mirror and point.validation is not None:
                mirror.keep(journal.path)
        _pass_on(point, plan.total_steps, report)

    teaching = workspace.teaching
    dimension = teaching.dimension_for(run) if teaching else None
    encoder = workspace.load_encoder(dimension)
    encoding = workspace.encoding(run.training.precision, run.training.token_budget)
    train(
        plan,
        workspace.tokens,
        encoder,
        run.build_loss(),
        run.training,
        encoding,
        validate=workspace.validator(encoding),
        report=on_progress,
        checkpoints=checkpoints,
        group=group,
        signals=teaching.signals(run) if teaching else None,
        refresh=Refresh(workspace, partial, encoding, spread) if workspace.sources.refreshed else None,
        inherits=run.encoder.inherits,
    )
    if group.rank == 0:
        _save(workspace, encoder, record(run, journal.read(), "finished"), partial)


def _pass_on(point: Progress, total_steps: int, report: Callable[[Progress], None]) -> None:
    """Report a validated point, but not the last one: that waits until the trained encoder is in the store."""
    if point.validation is not None and point.step < total_steps:
        report(point)


def _save(workspace: Workspace, encoder: BiEncoder, trial: Trial, partial: Path) -> None:
    settings, folder = workspace.settings, partial / MODEL
    if settings.lora:
        from orchestrator.lora import merge

        merge(encoder.backbone)
    if settings.inherits:
        assert workspace.teaching is not None
        queries = Tower(encoder, workspace.model.path, settings.query_tokens)
        save_towers(queries, workspace.teaching.tower, folder)
    else:
        save_encoder(encoder, folder, tokenizer=workspace.model.path, max_tokens=settings.document_tokens)
    (partial / RECORD).write_text(json.dumps(to_json(trial)), encoding="utf-8")
    checkpoints_in(partial).clear()
    Refresh.clear(partial)


def read_trial(stage: Stage, run: RunSpec) -> Trial:
    """The record of a finished run, under the name of the one that asks: another row may have made it."""
    trial = trial_from_json(json.loads((stage.path / RECORD).read_text(encoding="utf-8")))
    model = str(stage.path / MODEL)
    return replace(trial, name=run.name, parameters=run.knobs, costs=costs_of(run, trial.costs), model=model)


def trial_of(workspace: Workspace, run: RunSpec) -> Trial:
    """What a run came to, or how far it has come, from the store."""
    stage = workspace.trial(run)
    if stage.done:
        return read_trial(stage, run)
    reached = record(run, reported(stage), "stopped")
    failure = failure_of(stage)
    if failure is None:
        return reached
    costs = reached.costs if failure.costs is None else costs_of(run, failure.costs)
    return replace(reached, state="failed", reason=failure.reason, costs=costs)


def record(run: RunSpec, entries: list[Entry], state: str) -> Trial:
    """The record of a run as its journal tells it: its last validation, and the costs up to there."""
    validated = [entry for entry in entries if entry.point.validation is not None]
    return Trial(
        name=run.name,
        parameters=run.knobs,
        state=state,
        validation=validated[-1].point.validation or 0.0 if validated else 0.0,
        curve=tuple(entry.point for entry in entries),
        costs=costs_of(run, validated[-1].costs) if validated else (),
    )


def costs_of(run: RunSpec, costs: Costs) -> Costs:
    """As the row's that asks. A run that was made before its costs told the precision has that of its settings."""
    return tuple(
        replace(cost, recipe=run.row, trial=run.name, precision=cost.precision or run.training.precision)
        for cost in costs
    )
