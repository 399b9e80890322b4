"""Margin losses: Adaptive Relevance Margins (Gienapp et al. 2025, arXiv 2407.21515)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.checks import choice, flag, number, shown
from losses.contract import Embeddings, Loss, LossOutput, Signals, mean, output
from losses.similarity import unit


class Margin(Loss):
    """Drive the relevance margin of each triple to a target, constant or grown from the documents themselves.

    M = cos(q, p) - cos(q, n) is regressed on T: loss = mean of e(M - T). T is a constant, or grows with how alike p
    and n are, so that a negative that resembles the positive has to be kept further away; then nothing is left to tune.
    Unlike in a triplet loss nothing is clamped: a margin beyond its target is drawn back to it (but for "soft").

    Args:
        target: a constant in [-1, 1]; "adaptive", T = (1 + cos(p, n)) / 2 of the same entry; "distributed", each
            triple's margin against the targets (1 + cos(p_i, n)) / 2 of every positive in the batch.
        in_batch: None, each triple alone; or which margins form the B x B grid: "rows", M[i, j] = cos(q_i, p_i) -
            cos(q_i, n_j) (the textbook's), "columns", M[i, j] = cos(q_j, p_j) - cos(q_i, n_j) (the reference code's).
            In both T[i, j] = (1 + cos(p_i, n_j)) / 2, and the grid has no entry where n_j is relevant to q_i.
        error: e(x), "l2" x², "l1" |x| or "soft" log(1 + e^-x).
        detach_target: no gradient through T (an ablation; the paper's gradient flows through it).

    Needs queries (B, D), positives (B, D), negatives (B, K, D), K >= 1; each of the K negatives makes a triple of its
    own. `per_example` is the mean over a query's entries: its own triples; row i of a grid; for "distributed" its
    triples against every positive. Diagnostics: means of M, of T, of cos(q, p) and cos(q, n) within the triples, and
    the share of entries with M >= T.

    Raises ValueError for a constant outside [-1, 1], an unknown word, and "distributed" with `in_batch`, since it
    spans the batch already. Use InfoNCE where batches are large and negatives easy.
    """

    name: ClassVar[str] = "margin"
    needs: frozenset[str] = frozenset({"negatives"})
    tunable: ClassVar[tuple[str, ...]] = ("target",)
    paper: ClassVar[str] = "Gienapp et al. 2025, arXiv 2407.21515"

    def __init__(
        self,
        target: float | str,
        in_batch: str | None = None,
        error: str = "l2",
        detach_target: bool = False,
    ) -> None:
        super().__init__()
        self.target = _target(target)
        choice("in_batch", in_batch, (None, "rows", "columns"))
        choice("error", error, ("l2", "l1", "soft"))
        if target == "distributed" and in_batch is not None:
            raise ValueError(
                f'target "distributed" and in_batch "{in_batch}" exclude each other: '
                "distributed targets span the batch already"
            )
        self.in_batch, self.error, self.detach_target = in_batch, error, flag("detach_target", detach_target)

    def negatives_met(self, B: int, K: int) -> int:
        """Those of its own triples, or of a row of the grid."""
        return B * K if self.in_batch else K

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch; indices: query i, triple j, negative k."""
        q, p, n = unit(embeddings.queries), unit(embeddings.positives), unit(embeddings.negatives)
        P = torch.einsum("id,id->i", q, p)
        own = torch.einsum("id,ikd->ik", q, n)
        M = self._margins(q, n, P, own)
        T = self._targets(p, n)
        if self.detach_target:
            T = T.detach()
        entries = self._error(M - T)
        kept = embeddings.kept if self.in_batch else None
        if self.target == "distributed":  # one margin a triple j, met by the targets of all i: (B_i, B_j, K)
            per_example = entries.mean(dim=(0, 2))
        else:
            per_example = mean(entries, kept, tuple(range(1, entries.ndim)))
        return output(
            per_example,
            margin=mean(M, kept),
            target=mean(T.expand_as(M), kept) if kept is not None else T.mean(),
            positive_similarity=P.mean(),
            negative_similarity=own.mean(),
            satisfied=mean((M >= T).to(M.dtype), kept),
        )

    def _margins(self, q: Tensor, n: Tensor, P: Tensor, own: Tensor) -> Tensor:
        """M: (B, K) for each triple alone, (B, B, K) for a grid."""
        if self.in_batch is None:
            return P[:, None] - own
        N = torch.einsum("id,jkd->ijk", q, n)
        return (P[:, None, None] if self.in_batch == "rows" else P[None, :, None]) - N

    def _targets(self, p: Tensor, n: Tensor) -> Tensor:
        """T: () for a constant, (B, K) for each triple alone, (B, B, K) for a grid and for "distributed"."""
        if not isinstance(self.target, str):
            return p.new_tensor(self.target)
        alone = self.target == "adaptive" and self.in_batch is None
        S = torch.einsum("id,ikd->ik", p, n) if alone else torch.einsum("id,jkd->ijk", p, n)
        return (1 + S) / 2

    def _error(self, x: Tensor) -> Tensor:
        if self.error == "l2":
            return x.square()
        return x.abs() if self.error == "l1" else F.softplus(-x)


def _target(target: float | str) -> float | str:
    if isinstance(target, str) and target in ("adaptive", "distributed"):
        return target
    theta = number(target)
    if theta is None or not -1 <= theta <= 1:
        raise ValueError(f'target must be a number in [-1, 1], "adaptive" or "distributed", not {shown(target)}')
    return theta
