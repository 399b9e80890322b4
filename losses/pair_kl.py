"""Pairwise distillation: which of two documents comes first, as probable as for a teacher (PairDistill)."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from losses.checks import temperatures
from losses.contract import Embeddings, Loss, LossOutput, Signals, Space, output
from losses.pairs import differences, document_scores


class PairKL(Loss):
    """Kullback-Leibler divergence of the student's preference between two documents from the teacher's.

    loss = mean over i of the mean over the pairs a < b of query i of KL(T_ab, S_ab), both distributions over "a is
    before b" and its contrary, with T_ab = σ((t_a - t_b) / τ_t) and S_ab = σ((s_a - s_b) / τ). Two documents that the
    teacher cannot tell apart draw the student's scores together; RankNet looks at the order alone. PairDistill asks a
    teacher that reads two documents at once; here its preference is that of its scores.

    Args:
        temperature: τ > 0.
        teacher_temperature: τ_t > 0; None: τ as well. Another one where a teacher's scores have another scale, such as
            1 for the logits of a cross-encoder.

    Needs queries (B, D), positives (B, D), negatives (B, K, D), K >= 1, and teacher scores (B, 1 + K). Diagnostics: the
    share of pairs that both have in the same order, and how sure the teacher is, the mean of |2 T - 1|.

    Raises ValueError for a temperature that is not a positive number.
    """

    name: ClassVar[str] = "pair-kl"
    needs: frozenset[str] = frozenset({"negatives", "teacher_scores"})
    tunable: ClassVar[tuple[str, ...]] = ("temperature",)
    paper: ClassVar[str] = "Huang and Chen 2024, arXiv 2410.01383"

    def __init__(self, temperature: float = 0.05, teacher_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature, self.teacher_temperature = temperatures(temperature, teacher_temperature)

    def misfit(self, teacher: Space, student: Space) -> str | None:
        """A difference of two probabilities is no logarithm of odds."""
        if teacher == "probability":
            return "takes differences of a teacher's scores for logits, and these are probabilities"
        return None

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        s = document_scores(embeddings)
        a, b = torch.triu_indices(s.shape[1], s.shape[1], offset=1, device=s.device)
        S = differences(s)[:, a, b] / self.temperature
        T = differences(signals.scores_like(s))[:, a, b] / self.teacher_temperature
        p = T.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(T, p, reduction="none")
        return output(
            (F.binary_cross_entropy_with_logits(S, p, reduction="none") - entropy).mean(dim=1),
            agreement=(S.sign() == T.sign()).to(s.dtype).mean(),
            teacher_certainty=(2 * p - 1).abs().mean(),
        )
