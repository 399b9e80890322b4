"""What a comparison would do: its stages, what the store holds of them, and the steps that are left. Starts nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from data import Stage
from orchestrator import checks
from orchestrator.compare import Job
from orchestrator.config import Experiment, RecipeSettings
from orchestrator.console import Display
from orchestrator.runs import first_run, most_runs, standing_for
from orchestrator.searches import chosen_on_the_way, search_stage, started_runs
from orchestrator.tuning import concurrency

DONE, BEGUN, OPEN = "done", "begun", "to do"
_FOR = {"judged": "", "generated": ", for generated queries", "both": ", for judged and generated queries"}


class Planned(NamedTuple):
    """A stage, its state ("done", "begun" or "to do"), and what it is."""

    stage: str
    state: str
    what: str


def describe(experiment: Experiment) -> list[Planned]:
    """The stages in their order, then the resources. Reads the collection, which is quick, and computes nothing.

    Raises:
        UserError: what `compare` would refuse before it starts.
    """
    job = Job(experiment, Display())
    workspace, collection = job.workspace, job.workspace.collection
    checks.collection(workspace)
    checks.encoders(workspace)
    training, validation = workspace.split
    generated = sum(int(collection.generated[part.query_row].sum()) for part in (training, validation))
    lines = [
        Planned(
            "collection",
            DONE,
            f"{experiment.collection.path}: {collection.documents.num_rows:,} documents, {len(training):,} training "
            f"and {len(validation):,} validation judgments"
            + (f", {generated:,} of them generated" if generated else ""),
        )
    ]
    for field, stage in workspace.token_stages.items():
        lines.append(Planned(f"tokens of {field}", _state([stage]), f"{getattr(collection, field).num_rows:,} texts"))
    learned = workspace.learned_from
    if any(each.learns != "judged" for each in learned):
        generation = workspace.generation
        lines.append(Planned("generate queries", DONE if generation.done else OPEN, generation.in_words))
    for index, miner in workspace.sources.miners.items():
        state = DONE if all(each.collected and each.sources.mined(index) for each in learned) else OPEN
        depth = min(experiment.negatives.sources[index].depth, collection.documents.num_rows)
        what = f"the first {depth:,} of {collection.documents.num_rows:,} documents, {miner.experiment.encoder.model}"
        lines.append(Planned("mine negatives", state, what))
    for checker in workspace.sources.checkers.values():
        ranked = all(each.collected and each.sources.ranked for each in learned)
        lines.append(Planned("check negatives", DONE if ranked else OPEN, checker.name))
    for each in learned:
        if each.teaching:
            stages_of = each.teaching.stages if each.collected else None
            lines.append(Planned("teach", _state(stages_of), f"{each.teaching.in_words}{_FOR[each.learns]}"))
    for row in experiment.recipes:
        student = workspace.for_run(first_run(experiment, row))
        if not student.collected:
            lines.append(Planned(f"train {row.name}", OPEN, _trials(row, set())))
            continue
        steps = {student.steps(run.training) for run in standing_for(experiment, row)}
        stages = [workspace.trial(run) for run in started_runs(workspace, row)]
        search = search_stage(workspace, row)
        state = DONE if search.done else BEGUN if search.partial.exists() else _state(stages) if stages else OPEN
        lines.append(Planned(f"train {row.name}", state, _trials(row, steps)))
    if seeds := experiment.further_seeds:
        what = f"{len(seeds)} run(s) a row, of what validation chooses, with the seed(s) {', '.join(map(str, seeds))}"
        lines.append(Planned("train again", "", what))
    as_they_come = 1 + bool(
        experiment.teacher and experiment.teacher.encoder and any(each.teaching for each in learned)
    )
    encoders = len(experiment.recipes) * (1 + len(seeds)) + as_they_come
    lines.append(Planned("evaluate", "", f"{encoders} encoders on the test split"))
    side_by_side = concurrency(experiment, job.size, job.available)
    lines.append(
        Planned(
            "resources",
            "",
            f"{experiment.scaling.workers} worker(s) of {job.size.cpus} CPU and {job.size.gpus:g} GPU a trial, "
            f"{side_by_side} trial(s) side by side; there are {job.available.cpus} CPU and {job.available.gpus:g} GPU",
        )
    )
    return lines


def _trials(row: RecipeSettings, steps: Collection[int | None]) -> str:
    """How many trials there are, of how many steps, how they are chosen, and what may end them."""
    tune, most = row.tune, most_runs(row)
    trials = "1 trial" if most == 1 else f"{most} trials"
    if chosen_on_the_way(row) and most > 1:
        trials = f"at most {trials}"
    if known := sorted({each for each in steps if each}):
        trials += f" of {known[0]} steps" if len(known) == 1 else f" of {known[0]} to {known[-1]} steps"
    early = " at most, bad ones ended early by ASHA" if tune and tune.scheduler else ""
    drawn = f", drawn {'at random' if tune.search == 'random' else 'by TPE'}" if tune and tune.drawn else ""
    return f"{trials}{early}{drawn}"


def _state(stages: Sequence[Stage] | None) -> str:
    """Of stages; None where it takes others to know them."""
    if stages is None:
        return OPEN
    if all(stage.done for stage in stages):
        return DONE
    return BEGUN if any(stage.done or stage.partial.exists() for stage in stages) else OPEN
