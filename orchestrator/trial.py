"""One training run, made durable: a journal of what it reported, checkpoints, and the trained encoder at the end.

A run lives in a stage of the store. What it reports is appended to `journal.jsonl` first and passed on second. Run
again, it passes on what the journal holds, goes on from its newest checkpoint, and does nothing if it is finished.
So a search that was killed sees the same values in the same order when it is run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data import Stage
from orchestrator.checkpoints import Checkpoints, system_errors
from orchestrator.encoder import BiEncoder, Tower, save_encoder, save_towers
from orchestrator.group import Group
from orchestrator.journal import JOURNAL, Entry, Journal
from orchestrator.records import Progress, Trial, to_json, trial_from_json
from orchestrator.refresh import Refresh
from orchestrator.runs import RunSpec
from orchestrator.training import Costs, train
from orchestrator.workspace import MODEL, Workspace

RECORD = "trial.json"


def run_trial(
    workspace: Workspace, run: RunSpec, report: Callable[[Progress], None], group: Group | None = None
) -> None:
    """Train one run to its end, or go on where it was; every rank of the group calls it.

    Args:
        report: called on every rank with each validated point, old ones first. It may raise to end the run early. The
            last point is reported when the trained encoder is in the store.
    """
    group, workspace = group or Group(), workspace.for_run(run)
    stage = workspace.trial(run)
    if not stage.done:
        if group.rank == 0:
            stage.build(lambda partial: _train(workspace, run, partial, report, group))
        else:
            _train(workspace, run, stage.partial, report, group)
        group.wait()
        reported = read_trial(stage, run).curve[-1:]
    else:
        reported = read_trial(stage, run).curve
    for point in reported:
        if point.validation is not None:
            report(point)


@system_errors()
def _train(workspace: Workspace, run: RunSpec, partial: Path, report: Callable[[Progress], None], group: Group) -> None:
    journal = Journal(partial / JOURNAL)
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
        checkpoints=Checkpoints(partial / "checkpoints"),
        group=group,
        signals=teaching.signals(run) if teaching else None,
        refresh=Refresh(workspace, partial, encoding) if workspace.sources.refreshed else None,
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
    Checkpoints(partial / "checkpoints").clear()
    Refresh.clear(partial)


def read_trial(stage: Stage, run: RunSpec) -> Trial:
    """The record of a finished run, under the name of the one that asks: another row may have made it."""
    trial = trial_from_json(json.loads((stage.path / RECORD).read_text(encoding="utf-8")))
    model = str(stage.path / MODEL)
    return replace(trial, name=run.name, parameters=run.knobs, costs=costs_of(run, trial.costs), model=model)


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
