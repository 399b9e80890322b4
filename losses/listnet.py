"""ListNet: a query's documents as a distribution, drawn to that of their relevance (Cao et al. 2007)."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from losses.checks import choice, temperatures
from losses.contract import Embeddings, Loss, LossOutput, Signals, Space, output
from losses.pairs import document_scores


class ListNet(Loss):
    """Cross-entropy of the student's top-one probabilities against those of the relevance.

    loss = mean over i of -Σ_c P_c log S_c over the query's own documents, S = softmax_c(s(q_i, d_c) / τ) with s the dot
    product, which is the cosine where the encoder normalizes.

    Args:
        temperature: τ > 0.
        order: "judged", P = softmax_c(y_c) of the relevance y, 1 for the positive and 0 for the negatives: not all of
            it is on the positive, which InfoNCE with candidates "own" has; "teacher", P = softmax_c(t(q_i, d_c) / τ_t).
        teacher_temperature: τ_t > 0; None: τ as well.

    Needs queries (B, D), positives (B, D), negatives (B, K, D), K >= 1, and with order "teacher" scores (B, 1 + K);
    that is ScoreKL but for the entropy of P, which no weight changes. Diagnostics: the share of queries whose first
    document is the same for both, and the probability that the student gives the positive.

    Raises ValueError for a temperature that is not a positive number and an unknown word.
    """

    name: ClassVar[str] = "listnet"
    needs: frozenset[str] = frozenset({"negatives"})
    tunable: ClassVar[tuple[str, ...]] = ("temperature",)
    paper: ClassVar[str] = "Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach (ICML)"

    def __init__(
        self, temperature: float = 0.05, order: str = "judged", teacher_temperature: float | None = None
    ) -> None:
        super().__init__()
        choice("order", order, ("judged", "teacher"))
        self.temperature, self.teacher_temperature = temperatures(temperature, teacher_temperature)
        self.order = order
        if order == "teacher":
            self.needs = frozenset({"negatives", "teacher_scores"})

    def misfit(self, teacher: Space, student: Space) -> str | None:
        """A softmax is over logarithms of odds, which probabilities are not."""
        if teacher == "probability":
            return "takes a softmax over a teacher's scores, and these are probabilities, not logits"
        return None

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        s = document_scores(embeddings)
        relevance = (torch.arange(s.shape[1], device=s.device) == 0).to(s).expand_as(s)
        y = signals.scores_like(s) / self.teacher_temperature if self.order == "teacher" else relevance
        P, log_s = y.softmax(dim=1), F.log_softmax(s / self.temperature, dim=1)
        return output(
            -(P * log_s).sum(dim=1),
            agreement=(s.argmax(dim=1) == y.argmax(dim=1)).to(s.dtype).mean(),
            positive_probability=log_s[:, 0].exp().mean(),
        )
