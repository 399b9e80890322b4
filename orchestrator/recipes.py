"""The recipes: named ways to train, each a loss with its set-up and, where it has knobs, its tune space."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from tune_spaces import SPACES, TuneSpace

_ARM = "Gienapp et al. 2025, arXiv 2407.21515"
_NEGATIVES = frozenset({"negatives"})


@dataclass(frozen=True)
class Recipe:
    """A named way to train.

    `loss` and `parameters` are what `losses.build` takes; the knobs of `tune_space` are left out of `parameters`, since
    a search or the experiment sets them. `needs` is what the batches must hold, as the loss declares it with these
    parameters.
    """

    name: str
    loss: str
    parameters: Mapping[str, float | str | bool | None]
    needs: frozenset[str]
    paper: str
    summary: str
    tune_space: TuneSpace | None = None

    @property
    def parameter_free(self) -> bool:
        """Whether there is nothing to search."""
        return self.tune_space is None


RECIPES: dict[str, Recipe] = {
    "arm-adaptive": Recipe(
        name="arm-adaptive",
        loss="margin",
        parameters={"target": "adaptive", "in_batch": "rows"},
        needs=_NEGATIVES,
        paper=_ARM,
        summary="Margins regressed on how alike positive and negative are, over the whole batch.",
    ),
    "arm-distributed": Recipe(
        name="arm-distributed",
        loss="margin",
        parameters={"target": "distributed"},
        needs=_NEGATIVES,
        paper=_ARM,
        summary="Each triple's margin regressed on its negative's likeness to every positive of the batch.",
    ),
    "static-margin": Recipe(
        name="static-margin",
        loss="margin",
        parameters={"in_batch": "rows"},
        needs=_NEGATIVES,
        paper=_ARM,
        summary="Margins regressed on one constant over the whole batch: what the adaptive target saves tuning.",
        tune_space=SPACES["static-margin"],
    ),
    "infonce": Recipe(
        name="infonce",
        loss="infonce",
        parameters={},
        needs=frozenset(),
        paper="van den Oord et al. 2018, arXiv 1807.03748; for retrieval: Karpukhin et al. 2020, arXiv 2004.04906",
        summary="Softmax cross-entropy of the positive against all documents of the batch.",
        tune_space=SPACES["infonce"],
    ),
    "triplet": Recipe(
        name="triplet",
        loss="triplet",
        parameters={},
        needs=_NEGATIVES,
        paper="Schroff et al. 2015, arXiv 1503.03832",
        summary="A hinge on each triple's margin.",
        tune_space=SPACES["triplet"],
    ),
    "margin-mse": Recipe(
        name="margin-mse",
        loss="margin-mse",
        parameters={},
        needs=_NEGATIVES | {"teacher_scores"},
        paper="Hofstätter et al. 2020, arXiv 2010.02666",
        summary="Margins regressed on those of a teacher's scores.",
    ),
    "score-kl": Recipe(
        name="score-kl",
        loss="score-kl",
        parameters={},
        needs=_NEGATIVES | {"teacher_scores"},
        paper="Kim et al. 2023, arXiv 2301.12005, Eq. 11",
        summary="The softmax over a query's documents drawn to a teacher's; loss: {in_batch: true} for all of a batch.",
        tune_space=SPACES["score-kl"],
    ),
    "ranknet": Recipe(
        name="ranknet",
        loss="ranknet",
        parameters={},
        needs=_NEGATIVES,
        paper="Burges et al. 2005, Learning to rank using gradient descent (ICML)",
        summary="A logistic loss on each pair of a query's documents; loss: {order: teacher} for a teacher's order.",
        tune_space=SPACES["ranknet"],
    ),
    "lambdarank": Recipe(
        name="lambdarank",
        loss="ranknet",
        parameters={"order": "teacher", "weight": "ndcg"},
        needs=_NEGATIVES | {"teacher_scores"},
        paper="Burges 2010, MSR-TR-2010-82; gains as in Zeng et al. 2022, arXiv 2204.13679",
        summary="Pairs in a teacher's order, each weighted by the nDCG that is lost where it is wrong.",
        tune_space=SPACES["lambdarank"],
    ),
    "pair-kl": Recipe(
        name="pair-kl",
        loss="pair-kl",
        parameters={},
        needs=_NEGATIVES | {"teacher_scores"},
        paper="Huang and Chen 2024, arXiv 2410.01383",
        summary="How sure the student is which of two documents comes first, drawn to how sure a teacher is.",
        tune_space=SPACES["pair-kl"],
    ),
    "embedding-matching": Recipe(
        name="embedding-matching",
        loss="embedding-matching",
        parameters={},
        needs=frozenset({"teacher_queries", "teacher_documents"}),
        paper="Kim et al. 2023, arXiv 2301.12005, Eq. 7 and 8",
        summary="Vectors of queries and documents drawn to a teacher's.",
    ),
}


def get(name: str) -> Recipe:
    """The recipe of that name. Raises ValueError for an unknown one, naming the nearest or all."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "known: " + ", ".join(RECIPES)
        raise ValueError(f'"{name}" is not a recipe here; {hint}')
    return RECIPES[name]
