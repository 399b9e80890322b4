"""Relational matching: how alike the texts of a batch are for the student drawn to how alike they are for a teacher."""

from typing import ClassVar

import torch
from torch import Tensor

from losses.checks import choice
from losses.contract import Embeddings, Loss, LossOutput, Signals, output
from losses.similarity import unit


class RelationalMatching(Loss):
    """Draw the similarity matrix of a batch to a teacher's.

    loss = mean over i, c of (cos(x_i, y_c) - cos(x'_i, y'_c))², x' and y' the teacher's vectors. Only angles are set
    against each other, so the teacher may have another dimension; EmbeddingMatching asks for the vectors themselves.

    Args:
        between: "query-document", the queries against all B + B·K documents of the batch; "query", the queries among
            themselves, each against the B - 1 others; "document", the positives among themselves.

    Takes queries (B, D), positives (B, D), negatives (B, K, D), K >= 0, and of a teacher queries (B, D') and documents
    (B, 1 + K, D'). A batch of one query has no others, and gives 0. Diagnostics: the mean cosines of student and
    teacher.

    Raises ValueError for an unknown word.
    """

    name: ClassVar[str] = "relational-matching"
    needs: frozenset[str] = frozenset({"teacher_queries", "teacher_documents"})
    paper: ClassVar[str] = "Park et al. 2019, arXiv 1904.05068; Tung and Mori 2019, arXiv 1907.09682"

    def __init__(self, between: str = "query-document") -> None:
        super().__init__()
        choice("between", between, ("query-document", "query", "document"))
        self.between = between
        if between != "query-document":
            self.needs = frozenset({"teacher_queries" if between == "query" else "teacher_documents"})

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        S = self._cosines(embeddings.queries, embeddings.positives, embeddings.negatives)
        documents = signals.documents.to(S) if signals.documents is not None else S.new_zeros(len(S), 1, 1)
        queries = signals.queries.to(S) if signals.queries is not None else documents[:, 0]
        T = self._cosines(queries, documents[:, 0], documents[:, 1:])
        others = torch.ones_like(S)
        if self.between != "query-document":
            others.fill_diagonal_(0)
        count = others.sum(dim=1).clamp_min(1)
        return output(
            ((S - T).square() * others).sum(dim=1) / count,
            student_similarity=((S * others).sum(dim=1) / count).mean(),
            teacher_similarity=((T * others).sum(dim=1) / count).mean(),
        )

    def _cosines(self, q: Tensor, p: Tensor, n: Tensor) -> Tensor:
        """(B, B + B·K) or (B, B)."""
        if self.between == "query-document":
            return unit(q) @ unit(torch.cat([p, n.flatten(0, 1)])).T
        x = unit(q if self.between == "query" else p)
        return x @ x.T
