"""The recipes: named ways to train, each a loss with its set-up and, where it has knobs, its tune space."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tune_spaces import PREFIX, SPACES, Range, TuneSpace, Value, given_knob, training_knobs

_ARM = "Gienapp et al. 2025, arXiv 2407.21515"
_NEGATIVES = frozenset({"negatives"})
_VECTORS = frozenset({"teacher_queries", "teacher_documents"})


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
    open: bool = False  # what it minimises is written in the row, and any number of it can be a knob

    @property
    def parameter_free(self) -> bool:
        """Whether its loss has nothing to search."""
        return self.tune_space is None and not self.open

    def space_of(self, given: Mapping[str, Sequence[Value] | Range]) -> TuneSpace | None:
        """The knobs of its loss where a row gives values or ranges for some; None where it has none."""
        own = {name: values for name, values in given.items() if not name.startswith(PREFIX)}
        if self.open:
            return TuneSpace(self.name, tuple(given_knob(name, values) for name, values in own.items()))
        return self.tune_space.with_values(own) if self.tune_space else None

    def searched(
        self,
        given: Mapping[str, Sequence[Value] | Range],
        training: Sequence[str] = (),
        fixed: Collection[str] = (),
    ) -> TuneSpace:
        """What a search searches: the knobs of the loss that are not `fixed`, and those of training that it names."""
        space = self.space_of(given)
        own = tuple(knob for knob in space.knobs if knob.parameter not in fixed) if space else ()
        return TuneSpace(self.name, (*own, *training_knobs(training, given)))


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
    "self-distilled-infonce": Recipe(
        name="self-distilled-infonce",
        loss="self-distilled-infonce",
        parameters={},
        needs=frozenset(),
        paper="ours: docs/results.md",
        summary="Softmax over the documents of the batch, drawn to how alike the positive is to each of them.",
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
    "infonce-learned": Recipe(
        name="infonce-learned",
        loss="infonce",
        parameters={"temperature": "learned"},
        needs=frozenset(),
        paper="temperature: Radford et al. 2021, arXiv 2103.00020",
        summary="The same with a temperature that is learned with the weights.",
    ),
    "localized-contrastive": Recipe(
        name="localized-contrastive",
        loss="infonce",
        parameters={"candidates": "own"},
        needs=_NEGATIVES,
        paper="Gao et al. 2021, arXiv 2101.08751",
        summary="Softmax cross-entropy of the positive against the query's own negatives alone.",
        tune_space=SPACES["localized-contrastive"],
    ),
    "gist": Recipe(
        name="gist",
        loss="infonce",
        parameters={"mask": "teacher"},
        needs=_VECTORS,
        paper="Solatorio 2024, arXiv 2402.16829",
        summary="infonce without the documents that a teacher scores above the positive.",
        tune_space=SPACES["gist"],
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
    "listnet": Recipe(
        name="listnet",
        loss="listnet",
        parameters={},
        needs=_NEGATIVES,
        paper="Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach (ICML)",
        summary="The softmax over a query's documents drawn to that of their relevance; loss: {order: teacher}.",
        tune_space=SPACES["listnet"],
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
        needs=_VECTORS,
        paper="Kim et al. 2023, arXiv 2301.12005, Eq. 7 and 8",
        summary="Vectors of queries and documents drawn to a teacher's; loss: {side: query} for those of queries.",
    ),
    "embed-distill": Recipe(
        name="embed-distill",
        loss="weighted-sum",
        parameters={"terms": "infonce + score-kl + embedding-matching", "score-kl.in_batch": True},
        needs=_VECTORS,
        paper="Kim et al. 2023, arXiv 2301.12005, Eq. 7 to 11",
        summary="The labels, a teacher's scores and a teacher's vectors at once.",
        tune_space=SPACES["embed-distill"],
    ),
    "relational-matching": Recipe(
        name="relational-matching",
        loss="relational-matching",
        parameters={},
        needs=_VECTORS,
        paper="Park et al. 2019, arXiv 1904.05068; Tung and Mori 2019, arXiv 1907.09682",
        summary="How alike queries and documents are drawn to how alike they are for a teacher, of any dimension.",
    ),
    "matryoshka": Recipe(
        name="matryoshka",
        loss="matryoshka",
        parameters={"loss": "infonce", "dimensions": "64 128"},
        needs=frozenset(),
        paper="Kusupati et al. 2022, arXiv 2205.13147",
        summary="A loss over the first components of the vectors too: loss: {loss: NAME, dimensions: 64 128}.",
        open=True,
    ),
    "weighted-sum": Recipe(
        name="weighted-sum",
        loss="weighted-sum",
        parameters={},
        needs=frozenset(),
        paper="as its terms",
        summary="Any sum of losses: loss: {terms: infonce + 0.5*score-kl, infonce: {temperature: 0.05}}.",
        open=True,
    ),
}


def get(name: str) -> Recipe:
    """The recipe of that name. Raises ValueError for an unknown one, naming the nearest or all."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "known: " + ", ".join(RECIPES)
        raise ValueError(f'"{name}" is not a recipe here; {hint}')
    return RECIPES[name]
