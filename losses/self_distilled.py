"""Self-distilled InfoNCE: a contrastive loss without a knob, whose targets are the positive documents' own likeness."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F

from losses.contract import Embeddings, Loss, LossOutput, Signals, output
from losses.similarity import unit


class SelfDistilledInfoNCE(Loss):
    """Let each query rank the batch's documents as its positive ranks them.

    loss = mean over i of -Σ_c t_ic log softmax_c(√D cos(q_i, d_c)), t_i = softmax_c(√D cos(p_i, d_c)) without gradient,
    c over all positives, then all negatives of the batch, without those that are relevant to q_i as well. A positive is
    most like itself, so the target is InfoNCE's where the others are unlike it, and gives a share to a document that is
    nearly the same, such as a negative that nobody judged. Nothing is left to tune: cosines of random directions in D
    dimensions spread by 1 / √D, which makes √D the scale of the softmax (0.051 for its temperature at D = 384).

    Takes queries (B, D), positives (B, D), negatives (B, K, D), K >= 0. Diagnostics: share of queries whose positive
    comes first (accuracy), mean cos(q, p), the mean share of the target that is the positive's own, and where K >= 1
    the mean margin cos(q, p) - cos(q, n) within the triples.
    """

    name: ClassVar[str] = "self-distilled-infonce"
    paper: ClassVar[str] = "Stillhouse, docs/results.md; after Gienapp et al. 2025, arXiv 2407.21515"

    def negatives_met(self, B: int, K: int) -> int:
        """Every document of the batch but the positive."""
        return B - 1 + B * K

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        """The loss of a batch."""
        q, p, n = unit(embeddings.queries), unit(embeddings.positives), unit(embeddings.negatives)
        B, K, D = n.shape
        documents = torch.cat([p, n.flatten(0, 1)])
        out = torch.zeros(B, len(documents), dtype=torch.bool, device=q.device)
        if embeddings.relevant is not None:
            out = embeddings.relevant
        C = q @ documents.T  # (B, B + B·K)
        target = torch.softmax((math.sqrt(D) * (p @ documents.T)).masked_fill(out, -torch.inf), dim=1).detach()
        found = F.log_softmax((math.sqrt(D) * C).masked_fill(out, -torch.inf), dim=1).masked_fill(out, 0)
        own = C.diagonal()
        diagnostics = {
            "accuracy": (own >= C.masked_fill(out, -torch.inf).amax(dim=1)).to(C.dtype).mean(),
            "positive_similarity": own.mean(),
            "own_share": target.diagonal().mean(),
        }
        if K > 0:
            diagnostics["margin"] = (own[:, None] - torch.einsum("id,ikd->ik", q, n)).mean()
        return output(-(target * found).sum(dim=1), **diagnostics)
