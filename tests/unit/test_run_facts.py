"""What is pinned: tags and parameters have the same names whatever the recipe, and say all that a run was made with."""

from __future__ import annotations

from orchestrator.config import Experiment
from orchestrator.records import Trial
from orchestrator.run_facts import Facts
from orchestrator.runs import RunSpec

MIX = {"per_query": 2, "mix": [{"source": "bm25", "depth": 9}, {"source": "random", "weight": 2.0}]}
EXPERIMENT = Experiment.model_validate(
    {
        "name": "x",
        "collection": {"path": "c"},
        "encoder": {"model": "m", "layers": [0, 2]},
        "negatives": MIX,
        "teacher": {"encoder": {"model": "t"}},
        "recipes": [
            {"recipe": "infonce", "tune": {"space": {"temperature": [0.05, 0.1]}}, "training": {"epochs": 3}},
            {"recipe": "arm-adaptive", "name": "arm", "encoder": {"model": "other"}},
            {"recipe": "weighted-sum", "loss": {"terms": "infonce + 0.5*score-kl", "infonce": {"temperature": 0.05}}},
        ],
    }
)
FACTS = Facts("0123", EXPERIMENT, {"torch": "2.0", "commit": "abc"})


def tried(row: str, seed: int | None = None, **knobs: float) -> RunSpec:
    return FACTS.run_of(row, Trial(row, {**knobs}, "finished", 0.5, (), ()), seed)


def test_every_run_is_found_by_its_tags() -> None:
    every = {
        "stillhouse.collection": "c",
        "stillhouse.seed": "13",
        "stillhouse.commit": "abc",
        "mlflow.source.git.commit": "abc",
        "mlflow.source.name": "stillhouse",
        "mlflow.source.type": "LOCAL",
    }
    row = {"stillhouse.row": "infonce", "stillhouse.recipe": "infonce", "stillhouse.parameter_free": "false"}
    row |= {"stillhouse.queries": "judged", "stillhouse.encoder": "m"}
    assert FACTS.tags("infonce") == {**every, **row, "stillhouse.kind": "recipe"}
    assert FACTS.tags("infonce", tried("infonce", temperature=0.1)) == {**every, **row, "stillhouse.kind": "trial"}
    arm = FACTS.tags("arm")
    assert [arm[f"stillhouse.{key}"] for key in ("recipe", "parameter_free", "encoder")] == [
        "arm-adaptive", "true", "other"
    ]  # fmt: skip
    whole = {"stillhouse.encoder": "m", "stillhouse.kind": "comparison", "stillhouse.torch": "2.0"}
    whole["stillhouse.recipes"] = "infonce, arm-adaptive, weighted-sum"
    assert FACTS.tags() == {**every, **whole}
    assert FACTS.tags("untrained")["stillhouse.recipe"] == "untrained"
    assert FACTS.tags("teacher")["stillhouse.encoder"] == "t"


def test_the_parameters_of_a_trial() -> None:
    told = FACTS.params("infonce", tried("infonce", temperature=0.1))
    assert {key: value for key, value in told.items() if key.startswith("loss")} == {
        "loss": "infonce",
        "loss.temperature": "0.1",
        "loss.candidates": "batch",  # by default
        "loss.similarity": "cosine",
    }
    assert told["recipe"] == "infonce"
    assert (told["training.epochs"], told["training.learning_rate"]) == ("3", "2e-05")
    assert (told["training.batch_size"], told["training.share"]) == ("32", "1.0")
    assert (told["encoder.model"], told["encoder.layers"], told["seed"]) == ("m", "0, 2", "13")
    assert told["negatives.per_query"] == "2"
    assert (told["negatives.mix.0.source"], told["negatives.mix.0.depth"]) == ("bm25", "9")
    assert told["negatives.mix.1.weight"] == "2.0"
    assert told["teacher.encoder.model"] == "t"
    assert told["collection.skip_dangling"] == "false"
    assert "encoder.pooling" not in told  # not set
    assert not {"store", "name", "tracking.uri"} & set(told)


def test_parameters_have_the_same_names_in_every_recipe() -> None:
    def names(row: str, **knobs: float) -> set[str]:
        return {
            key for key in FACTS.params(row, tried(row, **knobs)) if not key.startswith(("loss.", "encoder.layers"))
        }

    assert names("infonce", temperature=0.05) == names("arm") == names("weighted-sum")
    summed = FACTS.params("weighted-sum", tried("weighted-sum"))
    assert (summed["loss.terms"], summed["loss.infonce.temperature"]) == ("infonce + 0.5*score-kl", "0.05")
    assert FACTS.params("arm", tried("arm"))["loss.target"] == "adaptive"


def test_a_run_with_a_further_seed_has_that_one() -> None:
    again = tried("infonce", seed=14, temperature=0.1)
    assert again.name == "infonce temperature=0.1 seed=14"
    assert FACTS.tags("infonce", again)["stillhouse.seed"] == "14"
    assert FACTS.params("infonce", again)["seed"] == "14"


def test_the_parameters_of_what_is_not_trained() -> None:
    assert FACTS.params("teacher")["encoder.model"] == "t"
    untrained = FACTS.params("untrained")
    assert (untrained["encoder.model"], untrained["collection.path"]) == ("m", "c")
    assert not any(key.startswith(("training", "loss")) for key in untrained)
    assert FACTS.params()["training.epochs"] == "2"  # what rows share
