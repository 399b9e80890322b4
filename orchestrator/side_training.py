"""Models that are trained beside the runs, a generator or a cross-encoder: one worker, and the best weights kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from data import BatchPlan, Shard
from data.store import TEMPORARY
from orchestrator import shards
from orchestrator.checkpoints import Checkpoints, system_errors
from orchestrator.config_schema import TrainingSettings
from orchestrator.encoding import Encoding
from orchestrator.group import Group
from orchestrator.journal import JOURNAL, Entry, Journal
from orchestrator.records import Progress, to_json
from orchestrator.training import Costs, Learner, Validated, fit

MODEL, SCORE = "model", "score.json"
_CHECKPOINTS = "checkpoints"


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
    journal = Journal(shard.folder / JOURNAL)
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

    checkpoints = Checkpoints(shard.folder / _CHECKPOINTS)
    fit(learner, plan, settings, encoding.device, validate=keep_the_best, report=report, checkpoints=checkpoints)
    entries = [entry for entry in journal.read() if entry.point.validation is not None]
    curve = {
        "step": [entry.point.step for entry in entries],
        "loss": [entry.point.loss for entry in entries],
        "validation": [entry.point.validation for entry in entries],
    }
    cost = shards.total(entries[-1].costs, stage)
    return pa.table(curve).replace_schema_metadata({"cost": json.dumps(to_json(cost))})


def tidy(folder: Path) -> None:
    """Remove what a finished training no longer needs."""
    Checkpoints(folder / _CHECKPOINTS).clear()
