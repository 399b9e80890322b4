"""What is refused before anything is computed in vain: what an experiment asks of its collection and its encoders."""

from __future__ import annotations

from data import UserError
from orchestrator.config_checks import misfit
from orchestrator.records import TEACHER
from orchestrator.runs import RunSpec, first_run, standing_for
from orchestrator.weights import placed
from orchestrator.workspace import Workspace


def collection(workspace: Workspace) -> None:
    """Refuse what its collection is too small for: batches, negatives, the validation pool, the test split.

    Raises:
        UserError: naming what is asked for.
    """
    experiment, workers = workspace.experiment, workspace.experiment.scaling.workers
    if experiment.generation:
        workspace.generation.check()
    for index, row in enumerate(experiment.recipes):
        for run in {run.training.batch_size: run for run in standing_for(experiment, row)}.values():
            size, knob = run.training.batch_queries, "training.batch_size"
            with placed(f"recipes.{index}.tune.space.{knob}" if knob in run.knobs else knob, knob):
                workspace.for_run(run).steps(run.training)
                if size and size % workers:
                    raise UserError(
                        f"a batch of {size} cannot be shared equally by {workers} workers",
                        where=knob,
                        mend=f"Make it a multiple of {workers}.",
                    )
    for each in workspace.learned_from:
        if each.collected and not each.sources.needs_ranking:
            each.negatives  # noqa: B018 - refuses what cannot be; to rank takes longer
    workspace.check_pool()
    workspace.test_qrels  # noqa: B018


def encoders(workspace: Workspace) -> None:
    """Refuse an encoder that cannot be loaded as the experiment has it, or that does not take its lengths; of those
    that mine and teach as well.

    Raises:
        UserError: in either case.
    """
    workspace.check_encoder("encoder")
    for index, miner in workspace.sources.miners.items():
        if miner is not workspace:
            miner.check_encoder(f"{workspace.sources.key(index)}.encoder")
    for checker in workspace.sources.checkers.values():
        checker.check()
    for each in workspace.learned_from:
        if each.teaching:
            each.teaching.check()
    for index, row in enumerate(workspace.experiment.recipes):
        run = first_run(workspace.experiment, row)
        student = workspace.for_run(run)
        if row.encoder:
            student.check_encoder(f"recipes.{index}.encoder")
        _trained(student, f"recipes.{index}.encoder")
        _loss(student, run, f"recipes.{index}.loss")
        _scores(student, run, f"recipes.{index}")


def _trained(student: Workspace, key: str) -> None:
    """Refuse to train an encoder of two towers as if it had one; `key` is the YAML path that it is said at."""
    if not student.two_towers:
        return
    teacher = student.experiment.teacher
    taught = student.settings.model == TEACHER and teacher and teacher.encoder
    model = taught.model if taught else student.settings.model
    raise UserError(
        f'"{model}" has two towers, and a row that encodes queries and documents alike trains one encoder',
        where=f"{key}.document_encoder",
        mend="Learn the tower of the queries and keep that of the documents (document_encoder: teacher, with "
        f'"teacher: {{encoder: {{model: {model}}}}}"), or start from one of the towers, as a model of its own.',
    )


def _loss(student: Workspace, run: RunSpec, key: str) -> None:
    """Refuse a loss that cannot be computed of vectors as long as the encoder's."""
    own = student.facts.dimension
    taught = student.teaching.dimension_for(run) if student.teaching else None
    try:
        run.try_loss(own if taught is None else taught, student.experiment.negatives.per_query)
    except ValueError as error:
        raise UserError(str(error), where=key) from None


def _scores(student: Workspace, run: RunSpec, key: str) -> None:
    """Refuse a teacher whose scores the loss cannot set beside the encoder's."""
    if student.teaching and "teacher_scores" in run.teacher_needs:
        told = misfit(run.recipe, run.build_loss(), student.teaching.space, student.space)
        if told:
            raise UserError(told[0], where=key, mend=told[1])
