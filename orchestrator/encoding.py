"""Length-aware encoding: sort by length, cut under a token budget, encode chunk by chunk, put back in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.encoder import BiEncoder
from orchestrator.packed import Ids, architecture, encode_packed

if TYPE_CHECKING:
    from orchestrator.cross_encoder import CrossEncoder

Encoder: TypeAlias = "BiEncoder | CrossEncoder"

log = logging.getLogger(__name__)

GROUP = 16  # chunks that share one cast of the weights; their gradients are summed in bf16 before they are in fp32

# On CPU cores 2,048 trains 1.05 times as fast as 4,096 and 1.15 times as 8,192, whose states leave the cache; on a
# GPU few large products are wanted.
TOKEN_BUDGET = {"cpu": 2048, "cuda": 32_768}

# Without gradients each core encodes chunks of its own, and 768 tokens are what its cache holds: 1.1 to 1.3
# times as fast as all cores on chunks of 2,048, with vectors that are the same on any number of cores.
CORE_BUDGET = 768

GATED = {"modernbert", "nomic_bert"}  # model types whose feed-forward is W (act(V x) * U x)


def device() -> torch.device:
    """Where this process encodes: on its GPU, if it was granted one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class TokenCount:
    """What went through an encoder. `padded` counts the positions of padded chunks, `tokens` those that carry text."""

    tokens: int = 0
    padded: int = 0
    flops: float = 0.0

    def include(self, other: TokenCount) -> None:
        """Count what another has counted too."""
        self.tokens += other.tokens
        self.padded += other.padded
        self.flops += other.flops

    def add(self, config: Any, chunks: Sequence[Sequence[Ids]], packed: bool) -> None:
        """Count chunks, in each of which the longest sequence comes first; `packed`: padded in attention alone."""
        for chunk in chunks:
            n, longest, tokens = len(chunk), len(chunk[0]), sum(map(len, chunk))
            self.tokens += tokens
            self.padded += n * longest
            self.flops += forward_flops(config, n, longest, tokens if packed else n * longest)


@dataclass(frozen=True)
class Encoding:
    """How to encode: the device, the precision ("bf16" or "fp32") and the tokens a chunk may hold with its padding."""

    device: torch.device
    precision: str
    token_budget: int
    pad_id: int

    @classmethod
    def on(cls, device: torch.device, precision: str, token_budget: int | None, pad_id: int) -> Encoding:
        """The same with a budget that suits the device where none is given."""
        return cls(device, precision, token_budget or TOKEN_BUDGET[device.type], pad_id)

    def encode(self, encoder: Encoder, sequences: Sequence[Ids], count: TokenCount | None = None) -> Tensor:
        """Vectors `(n, D)` in float32 of `n` sequences of token ids, in their order, with gradients if these are on."""
        return self._in_order(encoder, sequences, self.token_budget, self.encode_chunks, count)

    @torch.inference_mode()
    def embed(self, encoder: Encoder, sequences: Sequence[Ids], count: TokenCount | None = None) -> Tensor:
        """`encode` without gradients, in evaluation mode; in smaller chunks where these fill the device's memory up."""
        was_training = encoder.training
        encoder.eval()
        on_cores = self.device.type == "cpu"
        budget = min(self.token_budget, CORE_BUDGET) if on_cores else self.token_budget
        work = self._embed_chunks if on_cores else self.encode_chunks
        while True:
            tried = TokenCount()
            try:
                vectors = self._in_order(encoder, sequences, budget, work, tried)
                break
            except torch.OutOfMemoryError:
                if budget <= max(map(len, sequences)):
                    raise
                budget //= 2
                torch.cuda.empty_cache()
                log.info("the device's memory is full: chunks of %s tokens", f"{budget:,}")
        encoder.train(was_training)
        if count is not None:
            count.include(tried)
        return vectors

    def encode_chunks(
        self, encoder: Encoder, chunks: Sequence[Sequence[Ids]], count: TokenCount | None = None
    ) -> Iterator[Tensor]:
        """Vectors `(n, D)` of one chunk after the other; in each chunk the longest sequence comes first."""
        packed = architecture(encoder.backbone)
        if count is not None:
            count.add(encoder.config, chunks, packed is not None)
        if packed is None:
            # One context for all chunks, so that each weight is cast once and not once a chunk.
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                for chunk in chunks:
                    ids, mask = pad(chunk, self.pad_id)
                    yield encoder(ids.to(self.device, non_blocking=True), mask.to(self.device, non_blocking=True))
            return
        for start in range(0, len(chunks), GROUP):
            layers = packed.cast(self._dtype(encoder))
            for states, mask, ids in encode_packed(packed, layers, chunks[start : start + GROUP], self.device):
                yield encoder.pool(states, mask, ids)

    def _embed_chunks(
        self, encoder: Encoder, chunks: Sequence[Sequence[Ids]], count: TokenCount | None
    ) -> Iterator[Tensor]:
        """`encode_chunks` for CPU cores and without gradients: one cast of the weights, and a chunk for each core."""
        packed = architecture(encoder.backbone)
        if packed is None:
            yield from self.encode_chunks(encoder, chunks, count)
            return
        if count is not None:
            count.add(encoder.config, chunks, True)
        layers = packed.cast(self._dtype(encoder))

        def embed(chunk: Sequence[Ids]) -> Tensor:
            with torch.inference_mode():  # a thread's own
                (states,) = encode_packed(packed, layers, [chunk], self.device)
                return encoder.pool(*states)

        yield from _by_cores(embed, chunks)

    def _in_order(
        self,
        encoder: Encoder,
        sequences: Sequence[Ids],
        token_budget: int,
        work: Callable[[Encoder, Sequence[Sequence[Ids]], TokenCount | None], Iterator[Tensor]],
        count: TokenCount | None,
    ) -> Tensor:
        """Vectors `(n, D)` of sequences that `work` has encoded in chunks under a budget."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        order = chunks(lengths, token_budget)
        if not order:
            return torch.empty(0, encoder.dimension, device=self.device)
        vectors = list(work(encoder, [[sequences[row] for row in rows] for rows in order], count))
        back = torch.from_numpy(np.argsort(np.concatenate(order), kind="stable")).to(self.device)
        return torch.cat(vectors).index_select(0, back)

    def _dtype(self, encoder: Encoder) -> torch.dtype:
        """That of the products."""
        return torch.bfloat16 if self.precision == "bf16" else next(encoder.parameters()).dtype


def _by_cores(work: Callable[[Sequence[Ids]], Tensor], chunks: Sequence[Sequence[Ids]]) -> list[Tensor]:
    """`work` of each chunk, done by as many threads as torch may use, each on one core."""
    cores = torch.get_num_threads()
    if cores == 1 or len(chunks) < cores:
        return [work(chunk) for chunk in chunks]
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, chunks))
    finally:
        torch.set_num_threads(cores)  # which threads that come later start from


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


def forward_flops(config: Any, n: int, length: int, tokens: int) -> float:
    """Model FLOPs of one forward pass, 2 per multiply-add, embeddings left out.

    A layer has four D×D projections and two D×F feed-forward products (three where one gates the other) of each of
    `tokens`, and attention's two length×length products of each of `n` sequences, which a layer of local attention
    computes in full and masks.
    """
    D, layers = config.hidden_size, config.num_hidden_layers
    F = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", 4 * D)  # DistilBERT: hidden_dim
    products = 3 if getattr(config, "model_type", "") in GATED else 2
    return float(layers * (tokens * 2 * (4 * D * D + products * D * F) + n * length * 4 * length * D))
