"""Pairs of a query's own documents: its positive and its negatives."""

import torch
from torch import Tensor

from losses.contract import Embeddings


def document_scores(embeddings: Embeddings) -> Tensor:
    """The dot products of each query with its documents, the positive first: (B, 1 + K)."""
    documents = torch.cat([embeddings.positives[:, None], embeddings.negatives], dim=1)
    return torch.einsum("id,icd->ic", embeddings.queries, documents)


def differences(x: Tensor) -> Tensor:
    """x_a - x_b for all pairs of a query's documents (B, C): (B, C, C)."""
    return x[:, :, None] - x[:, None, :]
