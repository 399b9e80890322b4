"""InfoNCE: contrastive cross-entropy over the documents of a batch (van den Oord et al. 2018, arXiv 1807.03748)."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from losses.checks import temperature_of
from losses.contract import Embeddings, Loss, LossOutput, Signals, output
from losses.similarity import unit


class InfoNCE(Loss):
    """Tell each query's positive from every other document of the batch by a softmax.

    loss = mean over i of -log softmax_c(cos(q_i, d_c) / τ) at d_c = p_i, over B + B·K candidates: all positives, then
    all negatives of the batch, without those that are relevant to q_i as well. Where there are none of these it is
    sentence-transformers' MultipleNegativesRankingLoss with scale 1/τ.

    Args:
        temperature: τ > 0.

    Takes queries (B, D), positives (B, D), negatives (B, K, D), K >= 0. Diagnostics: share of queries whose positive
    comes first (accuracy), mean cos(q, p), and, where K >= 1, mean cos(q, n) and margin cos(q, p) - cos(q, n) within
    the triples.

    Raises ValueError for a temperature that is not a positive number. Use Margin("adaptive") where nothing should be
    tuned.
    """

    name: ClassVar[str] = "infonce"
    tunable: ClassVar[tuple[str, ...]] = ("temperature",)
    paper: ClassVar[str] = "van den Oord et al. 2018, arXiv 1807.03748"

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        self.temperature = temperature_of("temperature", temperature)

    def negatives_met(self, B: int, K: int) -> int:
        """Every document of the batch but the positive."""
        return B - 1 + B * K

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        q, p, n = unit(embeddings.queries), unit(embeddings.positives), unit(embeddings.negatives)
        C = q @ torch.cat([p, n.flatten(0, 1)]).T  # (B, B + B·K)
        own = torch.arange(len(q), device=q.device)
        P = C.diagonal()
        if embeddings.relevant is not None:
            C = C.masked_fill(embeddings.relevant, -torch.inf)
        diagnostics = {
            "accuracy": (C.argmax(dim=1) == own).to(C.dtype).mean(),
            "positive_similarity": P.mean(),
        }
        if n.shape[1] > 0:
            N = torch.einsum("id,ikd->ik", q, n)
            diagnostics |= {"negative_similarity": N.mean(), "margin": P.mean() - N.mean()}
        return output(F.cross_entropy(C / self.temperature, own, reduction="none"), **diagnostics)
