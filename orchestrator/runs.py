"""The training runs that an experiment asks for: each recipe, at each setting of its knobs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator import recipes
from orchestrator.config import Experiment, RecipeSettings, TrainingSettings
from orchestrator.config_schema import StudentSettings

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
        return " ".join([self.row, *(f"{knob}={value:.15g}" for knob, value in self.knobs.items()), *seed])

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


def runs_of(experiment: Experiment, row: RecipeSettings) -> tuple[RunSpec, ...]:
    """The runs of one row, in the order in which they are started: one, or one for each point of its grid."""
    recipe = recipes.get(row.recipe)
    points: tuple[dict[str, float], ...] = ({},)
    if row.tune is not None and (space := recipe.space_of(row.tune.space)) is not None:
        points = space.grid()
    return tuple(
        RunSpec(
            row=row.name,
            recipe=row.recipe,
            loss=recipe.loss,
            parameters={**recipe.parameters, **row.loss, **point},
            knobs=point,
            training=experiment.training_for(row),
            encoder=experiment.encoder_for(row),
            seed=experiment.seed,
        )
        for point in points
    )
