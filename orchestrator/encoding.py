"""Length-aware encoding: sort by length, cut under a token budget, encode chunk by chunk, put back in order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.encoder import BiEncoder

Ids = npt.NDArray[np.int32]

GATED = {"modernbert", "nomic_bert"}  # model types whose feed-forward is W (act(V x) * U x)


@dataclass
class TokenCount:
    """What went through an encoder. `padded` counts the positions computed, `tokens` those that carry text."""

    tokens: int = 0
    padded: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class Encoding:
    """How to encode: the device, the precision ("bf16" or "fp32") and the tokens a chunk may hold with its padding."""

    device: torch.device
    precision: str
    token_budget: int
    pad_id: int

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where asked for. One context a step, so that each weight is cast once and not once a chunk."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def encode(self, encoder: BiEncoder, sequences: Sequence[Ids], count: TokenCount | None = None) -> Tensor:
        """Vectors `(n, D)` in float32 of `n` sequences of token ids, in their order, with gradients if these are on."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        vectors, order = [], []
        for rows in chunks(lengths, self.token_budget):
            ids, mask = pad([sequences[row] for row in rows], self.pad_id)
            vectors.append(encoder(ids.to(self.device, non_blocking=True), mask.to(self.device, non_blocking=True)))
            order.append(rows)
            if count is not None:
                count.tokens += int(lengths[rows].sum())
                count.padded += ids.numel()
                count.flops += forward_flops(encoder.config, ids.shape[0], ids.shape[1])
        if not vectors:
            return torch.empty(0, encoder.dimension, device=self.device)
        back = torch.from_numpy(np.argsort(np.concatenate(order), kind="stable")).to(self.device)
        return torch.cat(vectors).index_select(0, back)

    @torch.inference_mode()
    def embed(self, encoder: BiEncoder, sequences: Sequence[Ids], count: TokenCount | None = None) -> Tensor:
        """`encode` without gradients, in evaluation mode."""
        was_training = encoder.training
        encoder.eval()
        with self.autocast():
            vectors = self.encode(encoder, sequences, count)
        encoder.train(was_training)
        return vectors


def chunks(lengths: npt.NDArray[np.int64], token_budget: int) -> list[npt.NDArray[np.int64]]:
    """Rows sorted by length (longest first) and cut so that rows × longest ≤ `token_budget`; at least one row each."""
    order = np.argsort(-lengths, kind="stable")
    cuts, start = [], 0
    while start < len(order):
        size = max(1, token_budget // max(1, int(lengths[order[start]])))
        cuts.append(order[start : start + size])
        start += size
    return cuts


def pad(sequences: Sequence[Ids], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids `(n, L)` and mask `(n, L)`, both int64, padded on the right to the longest sequence."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def forward_flops(config: Any, n: int, length: int) -> float:
    """Model FLOPs of one forward pass over `(n, length)` tokens, 2 per multiply-add, embeddings left out.

    A layer has four D×D projections, two D×F feed-forward products (three where one gates the other), and attention's
    two length×length products, which a layer of local attention computes in full and masks.
    """
    D, layers = config.hidden_size, config.num_hidden_layers
    F = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", 4 * D)  # DistilBERT: hidden_dim
    products = 3 if getattr(config, "model_type", "") in GATED else 2
    return float(n * length * layers * (2 * (4 * D * D + products * D * F) + 4 * length * D))
