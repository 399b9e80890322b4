"""Score distillation: the student's distribution over documents drawn to the teacher's (EmbedDistill, Eq. 11)."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from losses.checks import flag, temperatures
from losses.contract import Embeddings, Loss, LossOutput, Signals, Space, output


class ScoreKL(Loss):
    """Kullback-Leibler divergence of the student's softmax over documents from the teacher's.

    loss = mean over i of Σ_c P_c log(P_c / S_c), P = softmax_c(t(q_i, d_c) / τ_t), S = softmax_c(s(q_i, d_c) / τ), with
    s the dot product, which is the cosine where the encoder normalizes. The cross-entropy of Eq. 11 of EmbedDistill is
    this plus the entropy of P, which no weight changes: the gradient is the same.

    Args:
        temperature: τ > 0.
        teacher_temperature: τ_t > 0; None: τ as well, as in the paper. Another one where a teacher's scores have
            another scale, such as 1 for the logits of a cross-encoder.
        in_batch: over all B + B·K documents of the batch, which takes a teacher with vectors; otherwise over the
            query's own positive and K negatives.

    Takes queries (B, D), positives (B, D), negatives (B, K, D), and of a teacher scores (B, 1 + K), K >= 1, or, with
    `in_batch`, queries (B, D') and documents (B, 1 + K, D'). Diagnostics: the mean entropy of P, and the share of
    queries whose first document is the same for both.

    Raises ValueError for a temperature that is not a positive number.
    """

    name: ClassVar[str] = "score-kl"
    needs: frozenset[str] = frozenset({"negatives", "teacher_scores"})
    tunable: ClassVar[tuple[str, ...]] = ("temperature",)
    paper: ClassVar[str] = "Kim et al. 2023, arXiv 2301.12005, Eq. 11; Hinton et al. 2015, arXiv 1503.02531"

    def __init__(
        self, temperature: float = 0.05, teacher_temperature: float | None = None, in_batch: bool = False
    ) -> None:
        super().__init__()
        self.temperature, self.teacher_temperature = temperatures(temperature, teacher_temperature)
        self.in_batch = flag("in_batch", in_batch)
        if in_batch:
            self.needs = frozenset({"teacher_queries", "teacher_documents"})

    def negatives_met(self, B: int, K: int) -> int:
        """Its own, or every document of the batch but the positive."""
        return B - 1 + B * K if self.in_batch else K

    def misfit(self, teacher: Space, student: Space) -> str | None:
        """A softmax is over logarithms of odds, which probabilities are not."""
        if teacher == "probability":
            return "takes a softmax over a teacher's scores, and these are probabilities, not logits"
        return None

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        q, p, n = embeddings.queries, embeddings.positives, embeddings.negatives
        if self.in_batch:
            queries, documents = signals.vectors_like(q)
            S = q @ torch.cat([p, n.flatten(0, 1)]).T
            T = queries @ torch.cat([documents[:, 0], documents[:, 1:].flatten(0, 1)]).T
        else:
            S = torch.einsum("id,icd->ic", q, torch.cat([p[:, None], n], dim=1))
            T = signals.scores_like(q)
        log_p = F.log_softmax(T / self.teacher_temperature, dim=1)
        log_s = F.log_softmax(S / self.temperature, dim=1)
        return output(
            F.kl_div(log_s, log_p, reduction="none", log_target=True).sum(dim=1),
            teacher_entropy=-(log_p.exp() * log_p).sum(dim=1).mean(),
            agreement=(S.argmax(dim=1) == T.argmax(dim=1)).to(S.dtype).mean(),
        )
