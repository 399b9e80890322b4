"""Embedding matching: a student's vectors drawn to a teacher's (Kim et al. 2023, EmbedDistill, arXiv 2301.12005)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.checks import choice
from losses.contract import Embeddings, Loss, LossOutput, Signals, output

SIDES = {
    "query": frozenset({"teacher_queries"}),
    "document": frozenset({"teacher_documents"}),
    "both": frozenset({"teacher_queries", "teacher_documents"}),
}


class EmbeddingMatching(Loss):
    """Draw the vectors of queries, of documents or of both to those of a teacher.

    loss = mean over i of dist(q_i, q'_i) (Eq. 7), of the mean over c of dist(d_ic, d'_ic) with d_i the positive and the
    negatives of query i (Eq. 8), or of their sum; q' and d' are the teacher's. No judgment is looked at. Of a teacher
    that reads pairs (Sec. 4.2), q_i is drawn to q' in the context of each d_ic, in the mean over c.

    Args:
        side: "query", "document" or "both".
        distance: "norm" ||x - x'||, the paper's; "squared" ||x - x'||²; "cosine" 1 - cos(x, x').

    Takes queries (B, D), positives (B, D), negatives (B, K, D), K >= 0, and of a teacher queries (B, D), documents
    (B, 1 + K, D) in the same dimension; queries (B, 1 + K, D) of a teacher that reads pairs.

    Raises ValueError for an unknown word, and where the dimensions differ.
    """

    name: ClassVar[str] = "embedding-matching"
    needs: frozenset[str] = SIDES["both"]
    matches_vectors: ClassVar[bool] = True
    takes_context: bool = True
    paper: ClassVar[str] = "Kim et al. 2023, arXiv 2301.12005, Eq. 7 and 8"

    def __init__(self, side: str = "both", distance: str = "norm") -> None:
        super().__init__()
        choice("side", side, tuple(SIDES))
        choice("distance", distance, ("norm", "squared", "cosine"))
        self.side, self.distance, self.needs = side, distance, SIDES[side]

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        q, p, n = embeddings.queries, embeddings.positives, embeddings.negatives
        pairs = []
        if self.side != "document" and signals.queries is not None:
            pairs.append((q[:, None], signals.queries if signals.in_context else signals.queries[:, None]))
        if self.side != "query" and signals.documents is not None:
            pairs.append((torch.cat([p[:, None], n], dim=1), signals.documents))
        per_example = q.new_zeros(len(q))
        for x, given in pairs:
            if given.shape[-1] != x.shape[-1]:
                dimensions = given.shape[-1], x.shape[-1]
                raise ValueError("the teacher's vectors have {} dimensions and the student's {}".format(*dimensions))
            teacher = given.to(x)
            per_example = per_example + self._distance(x, teacher).mean(dim=1)
        return output(per_example)

    def _distance(self, x: Tensor, teacher: Tensor) -> Tensor:
        """Of vectors (B, C, D) from a teacher's: (B, C)."""
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(x, teacher, dim=-1)
        squared = (x - teacher).square().sum(dim=-1)
        if self.distance == "squared":
            return squared
        # The norm has no gradient where student and teacher are one; the root of a number above 0 always has.
        return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
