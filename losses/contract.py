"""The contract of every loss: what goes in, what comes out, what a loss declares about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Space = Literal["logit", "probability", "cosine", "dot"]
VECTORS = frozenset({"teacher_queries", "teacher_documents"})


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The encoded batch: B queries, a positive document for each, and K negatives for each.

    Shapes: queries (B, D), positives (B, D), negatives (B, K, D), with B >= 1 and K >= 0.

    The documents of a batch are its B positives, then its B·K negatives, those of query 0 first. `relevant`
    (B, B + B·K), bool, says which of them are relevant to which query apart from its own positive, so that no loss
    takes them for its negatives; None where there is no such pair.

    Raises ValueError, naming the shapes, where they do not fit each other.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor
    relevant: Tensor | None = None

    def __post_init__(self) -> None:
        Q, P, N = (tuple(x.shape) for x in (self.queries, self.positives, self.negatives))
        fit = len(Q) == 2 and Q[0] > 0 and P == Q and len(N) == 3 and (N[0], N[2]) == Q
        if not fit:
            raise ValueError(
                "embeddings must be queries (B, D), positives (B, D), negatives (B, K, D) with B > 0, "
                f"not queries {Q}, positives {P}, negatives {N}"
            )
        if (R := self.relevant) is not None and (R.shape != (Q[0], Q[0] * (1 + N[1])) or R.dtype != torch.bool):
            raise ValueError(
                f"what else is relevant must be (B, B + B·K) of bool, here {(Q[0], Q[0] * (1 + N[1]))}, "
                f"not {tuple(R.shape)} of {R.dtype}"
            )

    @property
    def kept(self) -> Tensor | None:
        """Which negatives (j, k) of the batch are negatives of query i, (B, B, K); None where all of them are."""
        B, K, _ = self.negatives.shape
        return None if self.relevant is None else ~self.relevant[:, B:].view(B, B, K)

    def full_precision(self) -> Embeddings:
        """The same batch with float16 and bfloat16 raised to float32; float32 and float64 stay as they are."""

        def raised(x: Tensor) -> Tensor:
            return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

        return replace(
            self, queries=raised(self.queries), positives=raised(self.positives), negatives=raised(self.negatives)
        )


@dataclass(frozen=True, eq=False)
class Signals:
    """What a teacher said about the batch; None for what it did not say.

    Shapes: scores (B, 1+K), the positive first; queries (B, D'), documents (B, 1+K, D') in the teacher's own dimension.
    A cross-encoder's vectors are of texts in the context of each other: its queries are (B, 1+K, D').
    `space` tells what a score is: "logit", "probability" in [0, 1], "cosine" in [-1, 1] or "dot".
    Raises ValueError for another `space`.
    """

    scores: Tensor | None = None
    queries: Tensor | None = None
    documents: Tensor | None = None
    space: Space | None = None

    def __post_init__(self) -> None:
        known = get_args(Space)
        if self.space is not None and self.space not in known:
            raise ValueError(f"the space of teacher scores must be one of {', '.join(known)}, not {self.space!r}")

    @property
    def in_context(self) -> bool:
        """Whether a query has a vector for each of its documents."""
        return self.queries is not None and self.queries.ndim == 3

    def scores_like(self, student: Tensor) -> Tensor:
        """The scores, on the device and in the precision of a student's vectors."""
        assert self.scores is not None
        return self.scores.to(student)

    def vectors_like(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's vectors of queries and documents, on the device and in the precision of a student's."""
        assert self.queries is not None
        assert self.documents is not None
        return self.queries.to(student), self.documents.to(student)


class LossOutput(NamedTuple):
    """A scalar to minimise, its value per query (B,), whose mean it is, and detached scalars to watch."""

    loss: Tensor
    per_example: Tensor
    diagnostics: dict[str, Tensor]


class Loss(nn.Module, ABC):
    """One idea of what to minimise. A subclass writes `compute` and declares:

    name: the word for it in a configuration.
    needs: of "negatives" (K >= 1), "teacher_scores", "teacher_queries", "teacher_documents"; the class has those
        of the default parameters, an instance may have others.
    tunable: the parameters that are knobs while they are numbers; a word in their place leaves nothing to tune.
    matches_vectors: whether it sets the student's vectors against the teacher's, which takes the same dimension.
    takes_context: whether these may be of texts in the context of each other.
    paper: where it comes from.
    """

    name: ClassVar[str]
    needs: frozenset[str] = frozenset()
    tunable: ClassVar[tuple[str, ...]] = ()
    matches_vectors: ClassVar[bool] = False
    takes_context: bool = False
    paper: ClassVar[str]

    __call__: Callable[..., LossOutput]

    @property
    def knobs(self) -> tuple[str, ...]:
        """The parameters of this instance that want tuning; empty where it is parameter-free."""
        return tuple(parameter for parameter in self.tunable if not isinstance(getattr(self, parameter), str))

    def negatives_met(self, B: int, K: int) -> int:
        """How many negatives a query meets in a batch of B queries with K negatives each, its own K included."""
        return K

    def at(self, progress: float) -> None:
        """Told before each step what share of the training is over, in [0, 1): for weights that change on the way."""

    def misfit(self, teacher: Space, student: Space) -> str | None:
        """What this loss would do with a teacher's scores and a student's that makes no sense; None where it does.

        A loss that sets the numbers of the two against each other, or takes them for what they are not, says so here.
        """
        return None

    def forward(self, embeddings: Embeddings, signals: Signals | None = None) -> LossOutput:
        """Check what the loss needs, then compute it in float32 or better, under autocast too.

        Whatever the loss, the diagnostics have the embedding misalignments of Kim et al. 2023, Theorem 3.1, where a
        teacher has vectors of the same dimension: the mean ||x - x'|| of queries and of documents.

        Raises ValueError naming what the loss needs and did not get.
        """
        signals = signals or Signals()
        offered = {
            "negatives": embeddings.negatives.shape[1] > 0,
            "teacher_scores": signals.scores is not None,
            "teacher_queries": signals.queries is not None,
            "teacher_documents": signals.documents is not None,
        }
        missing = sorted(need for need in self.needs if not offered[need])
        if missing:
            raise ValueError(f'the loss "{self.name}" needs {", ".join(missing)}, and the batch has none')
        if self.needs & VECTORS and signals.in_context and not self.takes_context:
            raise ValueError(f'the loss "{self.name}" needs vectors of texts alone, and the teacher\'s are of pairs')
        # Autocast would lower the products of the similarities to bfloat16, whose steps near 1 are 0.004 wide.
        with torch.autocast(embeddings.queries.device.type, enabled=False):
            embeddings = embeddings.full_precision()
            found = self.compute(embeddings, signals)
            return found._replace(diagnostics=found.diagnostics | _misalignments(embeddings, signals))

    @abstractmethod
    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss itself, on float32 or float64 embeddings."""


@torch.no_grad()
def _misalignments(embeddings: Embeddings, signals: Signals) -> dict[str, Tensor]:
    q, found = embeddings.queries, {}
    if signals.queries is not None and signals.queries.shape[-1] == q.shape[-1]:
        given = signals.queries.to(q)
        found["query_misalignment"] = ((q[:, None] if signals.in_context else q) - given).norm(dim=-1).mean()
    d = torch.cat([embeddings.positives[:, None], embeddings.negatives], dim=1)
    if signals.documents is not None and signals.documents.shape == d.shape:
        found["document_misalignment"] = (d - signals.documents.to(d)).norm(dim=-1).mean()
    return found


def mean(x: Tensor, kept: Tensor | None = None, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """The mean over `dim`, or over all, of the entries that are kept; None keeps all of them."""
    return x.mean(dim) if kept is None else (x * kept).sum(dim) / kept.sum(dim)


def output(per_example: Tensor, **diagnostics: Tensor) -> LossOutput:
    """The output whose loss is the mean of `per_example` (B,)."""
    return LossOutput(per_example.mean(), per_example, {name: value.detach() for name, value in diagnostics.items()})
