"""InfoNCE: contrastive cross-entropy over the documents of a batch (van den Oord et al. 2018, arXiv 1807.03748)."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.checks import choice, temperature_of
from losses.contract import Embeddings, Loss, LossOutput, Signals, output
from losses.similarity import unit

LEARNED = "learned"
START, LEAST = 0.05, 0.01  # of a learned temperature; CLIP (arXiv 2103.00020) lets 1/τ grow to 100 as well
GAIN = 100.0  # how much faster log τ moves than a weight: it has further to go, at a learning rate made for these


class InfoNCE(Loss):
    """Tell each query's positive from other documents by a softmax.

    loss = mean over i of -log softmax_c(cos(q_i, d_c) / τ) at d_c = p_i, over B + B·K candidates: all positives, then
    all negatives of the batch, without those that are relevant to q_i as well. Where there are none of these it is
    sentence-transformers' MultipleNegativesRankingLoss with scale 1/τ.

    Args:
        temperature: τ > 0, or "learned": a parameter in [0.01, ∞) that starts at 0.05 and has to be tuned no more.
        candidates: "batch", or "own", the query's own positive and K negatives (localized contrastive estimation, Gao
            et al. 2021, arXiv 2101.08751).
        similarity: "cosine", or "dot" in the place of cos, for encoders that do not normalize.
        mask: None; "teacher", candidates that a teacher scores above the positive are left out, as they may be relevant
            (Solatorio 2024, GISTEmbed, arXiv 2402.16829).

    Takes queries (B, D), positives (B, D), negatives (B, K, D), K >= 0; with candidates "own" K >= 1, with a mask a
    teacher's queries (B, D') and documents (B, 1 + K, D'). Diagnostics: share of queries whose positive comes first
    (accuracy), mean cos(q, p), where K >= 1 mean cos(q, n) and margin cos(q, p) - cos(q, n) within the triples, a
    learned temperature, and the share of candidates that a mask leaves out.

    Raises ValueError for a temperature that is neither a positive number nor the word, and another unknown word. Use
    Margin("adaptive") where nothing should be tuned.
    """

    name: ClassVar[str] = "infonce"
    tunable: ClassVar[tuple[str, ...]] = ("temperature",)
    paper: ClassVar[str] = "van den Oord et al. 2018, arXiv 1807.03748"

    def __init__(
        self,
        temperature: float | str = START,
        candidates: str = "batch",
        similarity: str = "cosine",
        mask: str | None = None,
    ) -> None:
        super().__init__()
        choice("candidates", candidates, ("batch", "own"))
        choice("similarity", similarity, ("cosine", "dot"))
        choice("mask", mask, (None, "teacher"))
        self.candidates, self.similarity, self.mask = candidates, similarity, mask
        self.temperature: float | str = LEARNED
        if temperature == LEARNED:
            self.slow_log_temperature = nn.Parameter(torch.tensor(math.log(START) / GAIN))
        else:
            self.temperature = temperature_of("temperature", temperature)
        own = {"negatives"} if candidates == "own" else set()
        self.needs = frozenset(own | ({"teacher_queries", "teacher_documents"} if mask else set()))

    def negatives_met(self, B: int, K: int) -> int:
        """Every document of the batch but the positive, or its own."""
        return K if self.candidates == "own" else B - 1 + B * K

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        q, p, n = embeddings.queries, embeddings.positives, embeddings.negatives
        if self.similarity == "cosine":
            q, p, n = unit(q), unit(p), unit(n)
        B, K, _ = n.shape
        C = q @ torch.cat([p, n.flatten(0, 1)]).T  # (B, B + B·K)
        P = C.diagonal()
        target = torch.arange(B, device=q.device)
        out = torch.zeros_like(C, dtype=torch.bool) if embeddings.relevant is None else embeddings.relevant.clone()
        if self.candidates == "own":
            others = torch.arange(B, device=q.device)[:, None] != torch.arange(B, device=q.device)
            out |= torch.cat([others, others[:, :, None].expand(B, B, K).flatten(1)], dim=1)
        diagnostics = {}
        if self.mask is not None:
            masked = self._suspects(q, signals) & ~out
            diagnostics["masked"] = masked.sum() / (~out).sum()
            out |= masked
        tau = self._tau()
        logits = (C / tau).masked_fill(out, -torch.inf)  # after the division: -∞ / τ has no gradient for τ
        if isinstance(tau, Tensor):
            diagnostics["temperature"] = tau
        diagnostics |= {
            "accuracy": (logits.argmax(dim=1) == target).to(C.dtype).mean(),
            "positive_similarity": P.mean(),
        }
        if K > 0:
            N = torch.einsum("id,ikd->ik", q, n)
            diagnostics |= {"negative_similarity": N.mean(), "margin": P.mean() - N.mean()}
        return output(F.cross_entropy(logits, target, reduction="none"), **diagnostics)

    def _tau(self) -> float | Tensor:
        if isinstance(self.temperature, float):
            return self.temperature
        return (self.slow_log_temperature * GAIN).exp()

    @torch.no_grad()
    def at(self, progress: float) -> None:
        """Keeps a learned temperature in its bounds, here and not in the graph, where it would lose its gradient."""
        if self.temperature == LEARNED:
            self.slow_log_temperature.clamp_(min=math.log(LEAST) / GAIN)

    def _suspects(self, q: Tensor, signals: Signals) -> Tensor:
        """Which candidates (B, B + B·K) a teacher scores above the query's positive."""
        queries, documents = signals.vectors_like(q)
        T = queries @ torch.cat([documents[:, 0], documents[:, 1:].flatten(0, 1)]).T
        return T.diagonal()[:, None] < T
