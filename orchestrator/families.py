"""Rows that differ in how many of the judged queries they learn from, and in nothing else."""

from __future__ import annotations

import json

from orchestrator.config import Experiment, RecipeSettings


def families(experiment: Experiment) -> dict[str, str]:
    """Row → its family: the name of the row with the largest share; empty where no other row has another share."""
    members: dict[str, list[RecipeSettings]] = {}
    for row in experiment.recipes:
        members.setdefault(_but_for_the_share(experiment, row), []).append(row)
    found = {}
    for rows in members.values():
        shares = [experiment.training_for(row).share for row in rows]
        label = rows[shares.index(max(shares))].name if len(set(shares)) > 1 else ""
        found.update({row.name: label for row in rows})
    return found


def _but_for_the_share(experiment: Experiment, row: RecipeSettings) -> str:
    """What a row is, whether it says so itself or the experiment says it for all, without its name and share."""
    return json.dumps(
        [
            row.model_dump(exclude={"name", "encoder", "training"}),
            experiment.encoder_for(row).model_dump(),
            experiment.training_for(row).model_dump(exclude={"share"}),
        ],
        sort_keys=True,
    )
