"""The workers of one training run, and what they exchange. One worker exchanges nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """All ranks' rows, in rank order; the gradient is that of the own rows.

    Every rank computes the same global loss from the gathered rows, so the gradient of its own rows is complete on it,
    and summing parameter gradients over ranks gives the gradient of the global loss.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        start = dist.get_rank() * context.rows
        return gradient[start : start + context.rows]


class Group:
    """The ranks of a run; wraps the process group that torch.distributed was initialised with, if it was."""

    def __init__(self) -> None:
        started = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if started else 0
        self.size = dist.get_world_size() if started else 1

    def gather(self, rows: Tensor) -> Tensor:
        """Rows `(b, …)` of every rank as `(size · b, …)`, differentiable; each rank must bring the same b."""
        return rows if self.size == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call, no-any-return]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter], *, scale: float = 1.0) -> None:
        """Replace each gradient by its sum over ranks times `scale`, in one exchange."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat.mul_(scale)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def merge(self, rows: Tensor) -> Tensor:
        """The sum over ranks, for tables of which each rank filled its own rows and left zeros elsewhere."""
        if self.size > 1:
            dist.all_reduce(rows)
        return rows

    def total(self, value: float) -> float:
        """The sum of a number over ranks."""
        return value if self.size == 1 else self._reduced(value, dist.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        """The largest of a number over ranks."""
        return value if self.size == 1 else self._reduced(value, dist.ReduceOp.MAX)

    def _reduced(self, value: float, how: Any) -> float:
        tensor = torch.tensor(value, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, how)
        return float(tensor)

    def first_at(self, place: str) -> bool:
        """Whether no rank before this one is at the same place."""
        if self.size == 1:
            return True
        number = int.from_bytes(hashlib.sha256(place.encode()).digest()[:7])
        places = [torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(self.size)]
        dist.all_gather(places, torch.tensor([number], device=self._device))
        return number not in [int(each) for each in places[: self.rank]]

    @property
    def _device(self) -> torch.device:
        """Where what is exchanged lies."""
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.size > 1:
            dist.barrier()
