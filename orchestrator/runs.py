"""The training runs that an experiment asks for: each recipe, at each setting of its knobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator import recipes
from orchestrator.config import Experiment, RecipeSettings, TrainingSettings
from orchestrator.config_schema import StudentSettings
from tune_spaces import PREFIX, Point, TuneSpace, Value

if TYPE_CHECKING:
    from losses import Loss


@dataclass(frozen=True)
class RunSpec:
    """One run: a row of the experiment with the loss's parameters and the training settings resolved.

    `knobs` are the parameters that the search chose for this run, empty for a recipe without a search. `seed` is that
    of the experiment, or a further one for a run that is made again (`again`).
    """

    row: str
    recipe: str
    loss: str
    parameters: dict[str, Any]
    knobs: dict[str, Any]
    training: TrainingSettings
    encoder: StudentSettings
    seed: int
    again: bool = False

    @property
    def name(self) -> str:
        """`static-margin target=0.3`, or the row alone for a run without knobs; `… seed=14` for one made again."""
        seed = [f"seed={self.seed}"] if self.again else []
        return " ".join([self.row, *(f"{knob}={_written(value)}" for knob, value in self.knobs.items()), *seed])

    def with_seed(self, seed: int) -> RunSpec:
        """The same run, made again with a further seed."""
        return replace(self, seed=seed, again=True)

    @property
    def teacher_needs(self) -> frozenset[str]:
        """What its loss, and its documents, need of a teacher."""
        inherited = {"teacher_documents"} if self.encoder.inherits else set()
        return frozenset(need for need in self.build_loss().needs if need.startswith("teacher_")) | inherited

    def build_loss(self) -> Loss:
        """The loss that this run minimises."""
        import losses

        return losses.build(self.loss, **self.parameters)

    def try_loss(self, D: int, K: int) -> None:
        """Compute the loss of a made-up batch of two queries with K negatives each, of vectors (D).

        Raises:
            ValueError: what the loss refuses.
        """
        import torch

        from losses import Embeddings, Signals

        x = torch.eye(2 * (2 + K), D).view(2, 2 + K, D)
        said = Signals(torch.eye(2, 1 + K), x[:, 0], x[:, 1:], "cosine")
        self.build_loss()(Embeddings(x[:, 0], x[:, 1], x[:, 2:]), said)


def _written(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"


def space_of(row: RecipeSettings) -> TuneSpace:
    """What the search of a row searches; without a knob where there is no search."""
    recipe = recipes.get(row.recipe)
    if row.tune is None:
        return TuneSpace(recipe.name, ())
    return recipe.searched(row.tune.given, row.tune.training, row.loss)


def run_at(experiment: Experiment, row: RecipeSettings, point: Mapping[str, Value]) -> RunSpec:
    """The run of a row at one point of its space."""
    recipe = recipes.get(row.recipe)
    of_loss = {knob: value for knob, value in point.items() if not knob.startswith(PREFIX)}
    of_training = {knob.removeprefix(PREFIX): value for knob, value in point.items() if knob.startswith(PREFIX)}
    training = experiment.training_for(row)
    if of_training:
        training = TrainingSettings.model_validate({**training.model_dump(), **of_training})
    return RunSpec(
        row=row.name,
        recipe=row.recipe,
        loss=recipe.loss,
        parameters={**recipe.parameters, **row.loss, **of_loss},
        knobs=dict(point),
        training=training,
        encoder=experiment.encoder_for(row),
        seed=experiment.seed,
    )


def first_run(experiment: Experiment, row: RecipeSettings) -> RunSpec:
    """The run that stands for those of a row: each knob has its first value."""
    return run_at(experiment, row, space_of(row).first)


def points_of(row: RecipeSettings) -> tuple[Point, ...] | None:
    """The points that a search tries, in their order, as far as its budget goes; None where they are drawn."""
    if row.tune is not None and row.tune.drawn:
        return None
    return space_of(row).grid()[: row.tune.most_trials if row.tune else None]


def runs_of(experiment: Experiment, row: RecipeSettings) -> tuple[RunSpec, ...]:
    """The runs of a row whose points are known before: one, or one for each point of its grid, in their order."""
    points = points_of(row)
    assert points is not None, f"the points of {row.name} are drawn"
    return tuple(run_at(experiment, row, point) for point in points)


def most_runs(row: RecipeSettings) -> int:
    """How many runs a row has at most."""
    points = points_of(row)
    if points is not None:
        return len(points)
    assert row.tune is not None
    assert row.tune.most_trials is not None
    space = space_of(row)
    return min(row.tune.most_trials, len(space.grid())) if space.finite else row.tune.most_trials


def standing_for(experiment: Experiment, row: RecipeSettings) -> tuple[RunSpec, ...]:
    """Runs that have among them every batch that a run of the row may have, and every parameter of a grid: all of a
    grid, and of what is drawn the first point at each batch size.
    """
    if points_of(row) is not None:
        return runs_of(experiment, row)
    space, size = space_of(row), f"{PREFIX}batch_size"
    sizes = [knob.values for knob in space.knobs if knob.parameter == size]
    points = [{**space.first, size: value} for value in sizes[0]] if sizes else [space.first]
    return tuple(run_at(experiment, row, point) for point in points)
