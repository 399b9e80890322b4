"""Models that are trained beside the runs, a generator or a cross-encoder: one worker, and the best weights kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from data import BatchPlan, Shard, UserError
from data.mirror import TEMPORARY, mirror_of
from orchestrator import shards
from orchestrator.checkpoints import system_errors
from orchestrator.config_schema import TrainingSettings
from orchestrator.encoding import Encoding
from orchestrator.group import Group
from orchestrator.journal import JOURNAL, Entry, Journal
from orchestrator.records import Progress, to_json
from orchestrator.spread import Spread, checkpoints_in
from orchestrator.training import Costs, Learner, Validated, fit

MODEL, SCORE = "model", "score.json"


@system_errors()
def train_in(
    shard: Shard,
    learner: Learner,
    plan: BatchPlan,
    settings: TrainingSettings,
    encoding: Encoding,
    *,
    validate: Callable[[], Validated],
    save: Callable[[Path], None],
    stage: str,
) -> pa.Table:
    """Train in the folder of a shard, or go on there, and tell the learning curve.

    The table has for each validation the `step`, the mean `loss` of the steps since the one before, and the score that
    `validate` found. The weights with the best one are those that `save` has written last. What it cost, an entry of
    the ledger under `stage`, is metadata of its schema.
    """
    Spread(shard.folder, Group())
    journal, mirror = Journal(shard.folder / JOURNAL), mirror_of(shard.folder)
    known = {entry.point.step for entry in journal.read()}

    def keep_the_best(group: Group) -> Validated:
        found = validate()
        kept = shard.folder / MODEL / SCORE
        if not kept.is_file() or found.score > json.loads(kept.read_text()):
            kept.unlink(missing_ok=True)  # it is written when the model is, and all at once
            save(kept.parent)
            score = kept.with_name(f"{SCORE}{TEMPORARY}")
            score.write_text(json.dumps(found.score))
            score.rename(kept)
        return found

    def report(point: Progress, costs: Costs) -> None:
        if point.step not in known:
            journal.append(Entry(point, costs))
            if mirror and point.validation is not None:
                mirror.keep(journal.path)

    checkpoints = checkpoints_in(shard.folder)
    fit(learner, plan, settings, encoding.device, validate=keep_the_best, report=report, checkpoints=checkpoints)
    if mirror:
        mirror.keep_run(plan.total_steps)
    entries = [entry for entry in journal.read() if entry.point.validation is not None]
    curve = {
        "step": [entry.point.step for entry in entries],
        "loss": [entry.point.loss for entry in entries],
        "validation": [entry.point.validation for entry in entries],
    }
    cost = shards.total(entries[-1].costs, stage)
    return pa.table(curve).replace_schema_metadata({"cost": json.dumps(to_json(cost))})


def gather(folder: Path, steps: int) -> None:
    """Bring what a training of so many steps has left, if it was on another machine; remove what nobody needs any more.

    Raises UserError where it cannot be had.
    """
    mirror = mirror_of(folder)
    if mirror and Journal(folder / JOURNAL).last < steps:
        table = Shard(folder, 0).path.name  # beside the run, which was over before it was written
        if mirror.bring_run(steps - 1) < steps or not mirror.bring(table):
            raise UserError(
                f"{mirror.remote.uri} does not have a model that was trained on another machine",
                where="store",
                mend="Run again, when every machine of the cluster can write there.",
            )
    checkpoints_in(folder).clear()
