"""What MLflow is told of a run beside its values: tags that it is found by, and parameters that say how it was made.

Both have the same names whatever the recipe, those of the YAML, so that runs can be set side by side and searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator import recipes
from orchestrator.config import Experiment, RecipeSettings
from orchestrator.records import TEACHER, Trial
from orchestrator.runs import RunSpec, run_at

NOT_OF_A_RUN = {
    *("name", "recipes", "evaluation", "scaling", "tracking", "store", "expected", "prices", "seeds", "vary"),
    *("encoder", "training"),
}


@dataclass(frozen=True)
class Facts:
    """What is known of a comparison before it has any value.

    `environment` has versions, the machine and, where it is known, the commit that is run.
    """

    fingerprint: str
    experiment: Experiment
    environment: Mapping[str, str]

    def run_of(self, row: str, trial: Trial, seed: int | None = None) -> RunSpec:
        """The run that a trial was; with a further seed."""
        run = run_at(self.experiment, self._rows[row], trial.parameters)
        return run if seed is None else run.with_seed(seed)

    def tags(self, row: str | None = None, run: RunSpec | None = None) -> dict[str, str]:
        """Those of the comparison, of one of its rows, or of a row's trial."""
        kind = "comparison" if row is None else "recipe" if run is None else "trial"
        tags = {
            "kind": kind,
            "collection": self.experiment.collection.path,
            "encoder": self._encoder(row),
            "seed": str(run.seed if run else self.experiment.seed),
        }
        own = {"mlflow.source.name": "stillhouse", "mlflow.source.type": "LOCAL"}
        if commit := self.environment.get("commit"):
            tags["commit"], own["mlflow.source.git.commit"] = commit, commit
        if row is None:
            tags["recipes"] = ", ".join(each.recipe for each in self.experiment.recipes)
            tags |= self.environment
        else:
            settings = self._rows.get(row)
            recipe = settings.recipe if settings else row
            tags |= {"row": row, "recipe": recipe}
            tags["parameter_free"] = _word(settings is None or recipes.get(recipe).parameter_free)
            tags["queries"] = self.experiment.training_for(settings).queries if settings else "judged"
        return {f"stillhouse.{key}": value for key, value in tags.items()} | own

    def params(self, row: str | None = None, run: RunSpec | None = None) -> dict[str, str]:
        """All that a trial was made with, and so the row that it won; of the comparison what its rows share."""
        experiment = self.experiment
        shared = {"workers": experiment.scaling.workers, **experiment.model_dump(exclude=NOT_OF_A_RUN)}
        if row is None:
            shared |= {"encoder": experiment.encoder.model_dump(), "training": experiment.training.model_dump()}
            return dict(_flat("", shared))
        if run is None:  # an encoder as it comes
            taught = experiment.teacher.encoder if experiment.teacher and row == TEACHER else None
            encoder = (taught or experiment.encoder).model_dump()
            made = {"recipe": row, "collection": experiment.collection.model_dump(), "encoder": encoder}
            return dict(_flat("", made))
        shared |= {"recipe": run.recipe, "encoder": run.encoder.model_dump(), "training": run.training.model_dump()}
        shared["seed"] = run.seed
        return {"loss": run.loss, **dict(_flat("", shared)), **dict(_flat("loss", _loss(run)))}

    def query_tokens(self, row: str) -> int:
        """Where a row's encoder cuts queries."""
        return self.experiment.encoder_for(self._rows[row]).query_tokens

    @cached_property
    def _rows(self) -> dict[str, RecipeSettings]:
        return {row.name: row for row in self.experiment.recipes}

    def _encoder(self, row: str | None) -> str:
        experiment = self.experiment
        if row is not None and row in self._rows:
            return experiment.encoder_for(self._rows[row]).model
        if row == TEACHER and experiment.teacher and experiment.teacher.encoder:
            return experiment.teacher.encoder.model
        return experiment.encoder.model


def _loss(run: RunSpec) -> dict[str, Any]:
    """The parameters of a run's loss, those that it has by default too."""
    import losses

    (told,) = (each for each in losses.describe() if each.name == run.loss)
    return {**{each.name: each.default for each in told.parameters if not each.required}, **run.parameters}


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """`training.epochs` → "2": the keys of the YAML to each value in words; what is not set is left out."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list | tuple):
        if any(isinstance(each, Mapping) for each in value):
            for index, inner in enumerate(value):
                yield from _flat(f"{key}.{index}", inner)
        elif value:
            yield key, ", ".join(map(_word, value))
    elif value is not None and value != "":
        yield key, _word(value)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
