"""Triplet loss: a hinge on the relevance margin (Schroff et al. 2015, arXiv 1503.03832)."""

from typing import ClassVar

import torch

from losses.checks import choice, number, shown
from losses.contract import Embeddings, Loss, LossOutput, Signals, mean, output
from losses.similarity import unit


class Triplet(Loss):
    """Keep each triple's margin above a bound; a triple that does gives no gradient.

    loss = mean of max(0, θ - M), M = cos(q, p) - cos(q, n). Margin with a constant target has the same M, but is not
    clamped: there a margin beyond θ costs as much as one short of it, here it costs nothing and teaches nothing.

    Args:
        margin: θ in (0, 2], the width of cosine differences.
        in_batch: None, each triple alone; "rows", M[i, j] = cos(q_i, p_i) - cos(q_i, n_j) for all i, j but those where
            n_j is relevant to q_i.

    Needs queries (B, D), positives (B, D), negatives (B, K, D), K >= 1. `per_example` is the mean over a query's
    triples, or over row i. Diagnostics: means of M, of cos(q, p) and cos(q, n) within the triples, and the share of
    entries with M >= θ.

    Raises ValueError for a margin outside (0, 2] and an unknown `in_batch`.
    """

    name: ClassVar[str] = "triplet"
    needs: frozenset[str] = frozenset({"negatives"})
    tunable: ClassVar[tuple[str, ...]] = ("margin",)
    paper: ClassVar[str] = "Schroff et al. 2015, arXiv 1503.03832"

    def __init__(self, margin: float, in_batch: str | None = None) -> None:
        super().__init__()
        theta = number(margin)
        if theta is None or not 0 < theta <= 2:
            raise ValueError(f"margin must be a number greater than 0 and at most 2, not {shown(margin)}")
        choice("in_batch", in_batch, (None, "rows"))
        self.margin, self.in_batch = theta, in_batch

    def negatives_met(self, B: int, K: int) -> int:
        """Those of its own triples, or of a row of the grid."""
        return B * K if self.in_batch else K

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        q, p, n = unit(embeddings.queries), unit(embeddings.positives), unit(embeddings.negatives)
        P = torch.einsum("id,id->i", q, p)
        own = torch.einsum("id,ikd->ik", q, n)
        N = own if self.in_batch is None else torch.einsum("id,jkd->ijk", q, n).flatten(1)
        kept = embeddings.kept.flatten(1) if self.in_batch and embeddings.kept is not None else None
        M = P[:, None] - N
        return output(
            mean((self.margin - M).relu(), kept, dim=1),
            margin=mean(M, kept),
            positive_similarity=P.mean(),
            negative_similarity=own.mean(),
            satisfied=mean((self.margin <= M).to(M.dtype), kept),
        )
