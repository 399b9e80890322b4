"""Cosine similarity, safe at every length of a vector."""

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """Vectors (..., D) scaled to length 1; a zero vector stays zero and gets a finite gradient.

    Dividing by the largest component first keeps the squares in the norm from over- or underflowing. A positive
    factor does not change a direction, so no gradient has to pass through it.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    length = x.square().sum(dim=-1, keepdim=True).clamp_min(1).sqrt()  # at least 1 now, but for zero vectors
    return x / length
