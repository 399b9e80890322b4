"""Made-up batches of vectors for the tests of losses."""

from dataclasses import replace

import torch
from torch import Tensor

from losses import Embeddings, Signals


def batch(
    B: int = 4, K: int = 2, D: int = 5, seed: int = 0, *, masked: bool = False, dtype: torch.dtype = torch.float64
) -> Embeddings:
    """Random vectors; `masked`, with a third of what belongs to other queries relevant to a query as well."""
    generator = torch.Generator().manual_seed(seed)
    q, p, n = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((B, D), (B, D), (B, K, D)))
    relevant = (torch.rand(B, B + B * K, generator=generator) < 1 / 3) & ~own(B, K)
    return Embeddings(q, p, n, relevant if masked else None)


def taught(B: int = 4, K: int = 2, D: int = 5, seed: int = 7) -> Signals:
    """Random scores and vectors of a teacher."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, 1 + K), (B, D), (B, 1 + K, D)
    scores, queries, documents = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return Signals(scores, queries, documents, "dot")


def own(B: int, K: int) -> Tensor:
    """Which documents of a batch stand beside a query, as its positive or its negatives: (B, B + B·K)."""
    same = torch.eye(B, dtype=torch.bool)
    return torch.cat([same, same.repeat_interleave(K, dim=1)], dim=1)


def tensors(embeddings: Embeddings) -> tuple[Tensor, Tensor, Tensor]:
    """The three of a batch that have gradients."""
    return embeddings.queries, embeddings.positives, embeddings.negatives


def changed(embeddings: Embeddings, *vectors: Tensor) -> Embeddings:
    """The batch with other vectors."""
    q, p, n = vectors
    return replace(embeddings, queries=q, positives=p, negatives=n)


def permuted(embeddings: Embeddings, order: list[int]) -> Embeddings:
    """The batch with its triples in another order."""
    B, K, _ = embeddings.negatives.shape
    relevant = embeddings.relevant
    if relevant is not None:
        columns = order + [B + j * K + k for j in order for k in range(K)]
        relevant = relevant[order][:, columns]
    return Embeddings(*(x[order] for x in tensors(embeddings)), relevant)


def counts(embeddings: Embeddings, i: int, j: int, k: int) -> bool:
    """Whether negative k of query j is a negative of query i."""
    B, K, _ = embeddings.negatives.shape
    return embeddings.relevant is None or not embeddings.relevant[i, B + j * K + k]
