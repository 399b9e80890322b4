"""RankNet: pairs of a query's documents put in order (Burges et al. 2005), weighted by nDCG as in LambdaRank."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.checks import choice, temperature_of
from losses.contract import Embeddings, Loss, LossOutput, Signals, output
from losses.pairs import differences, document_scores


class RankNet(Loss):
    """A logistic loss on each pair of documents whose order is known.

    loss = mean over i of the mean over the ordered pairs (a, b) of query i of w_ab log(1 + exp(-(s_a - s_b) / τ)), with
    s the dot product, which is the cosine where the encoder normalizes.

    Args:
        temperature: τ > 0.
        order: "judged", the positive before each of the query's negatives; "teacher", a before b where a teacher scores
            a higher, the positive being one document among the others.
        weight: None, w = 1; "ndcg", the nDCG that is lost if a and b change places in the student's own ranking of the
            query's documents (LambdaRank). Gains are 1 and 0 where judged, and 1 over the teacher's rank otherwise.

    Needs queries (B, D), positives (B, D), negatives (B, K, D), K >= 1, and with order "teacher" scores (B, 1 + K). A
    query whose documents are all tied gives 0. Diagnostics: the share of ordered pairs that the student has in order,
    and how many pairs a query has.

    Raises ValueError for a temperature that is not a positive number and an unknown word.
    """

    name: ClassVar[str] = "ranknet"
    needs: frozenset[str] = frozenset({"negatives"})
    tunable: ClassVar[tuple[str, ...]] = ("temperature",)
    paper: ClassVar[str] = "Burges et al. 2005 (ICML); Burges 2010, MSR-TR-2010-82; gains: Zeng et al. 2022, 2204.13679"

    def __init__(self, temperature: float = 0.05, order: str = "judged", weight: str | None = None) -> None:
        super().__init__()
        choice("order", order, ("judged", "teacher"))
        choice("weight", weight, (None, "ndcg"))
        self.temperature = temperature_of("temperature", temperature)
        self.order, self.weight = order, weight
        if order == "teacher":
            self.needs = frozenset({"negatives", "teacher_scores"})

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        s = document_scores(embeddings)
        first = torch.arange(s.shape[1], device=s.device) == 0
        t = signals.scores_like(s) if self.order == "teacher" else first.to(s).expand_as(s)
        ordered = differences(t) > 0
        losses = F.softplus(-differences(s) / self.temperature) * ordered
        if self.weight is not None:
            gains = 1 / _ranks(t) if self.order == "teacher" else t
            losses = losses * _ndcg_lost(s.detach(), gains)
        pairs = ordered.sum(dim=(1, 2))
        right = (ordered & (differences(s) > 0)).sum(dim=(1, 2))
        return output(
            losses.sum(dim=(1, 2)) / pairs.clamp_min(1),
            in_order=(right / pairs.clamp_min(1)).to(s.dtype).mean(),
            pairs=pairs.to(s.dtype).mean(),
        )


def _ranks(scores: Tensor) -> Tensor:
    """The rank of each document (B, C) by its score, 1 for the highest; of equal ones the first comes first."""
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1).to(scores.dtype) + 1


def _ndcg_lost(s: Tensor, gains: Tensor) -> Tensor:
    """How much nDCG changes where documents a and b change places, (B, C, C), for scores and gains (B, C)."""
    discounts = 1 / torch.log2(1 + _ranks(s))
    ideal = (gains.sort(dim=1, descending=True).values / torch.log2(2 + torch.arange(s.shape[1]).to(s))).sum(dim=1)
    return (differences(gains) * differences(discounts)).abs() / ideal[:, None, None]
