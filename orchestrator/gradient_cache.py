"""Gradient caching: the gradient of any loss over a batch of any size, in the memory of a part of it.

Gao et al. 2021 (arXiv 2101.06983). The loss needs the vectors of the whole batch at once, but not what the encoder
computed on the way to them. So a chunk is encoded without keeping that; the loss gives each vector its gradient; then
the chunk is encoded again, keeping it, and takes the gradient of its vectors on to the weights. The weights reach the
loss through the vectors alone, so the sum over the chunks is the gradient of the batch, whatever the loss.

Encoding again adds one forward pass to a step of one forward and one backward pass (about two), a third at most: the
last chunks keep what they computed, as far as a budget of tokens reaches, and a batch that fits is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.encoding import GROUP, Encoder, Encoding, TokenCount, chunks
from orchestrator.packed import Ids

RandomState = tuple[Tensor, ...]
Span = list[npt.NDArray[np.int64]]


class GradientCache:
    """The vectors of a batch's sequences, cut off from the encoder, and the way back to its weights.

    Call `backward` after the loss's own: it adds the weights' gradients. Both encodings of a chunk draw the same
    random numbers, so dropout drops the same; the gradient is that of encoding all at once, up to rounding.

    Args:
        activation_tokens: how many tokens, padding included, may have their activations kept for the backward pass at
            a time; where a chunk is longer, one chunk's.

    Attributes:
        vectors: `(n, D)` in the sequences' order, a leaf that the loss gives its gradient to.
    """

    def __init__(self, encoder: Encoder, encoding: Encoding, sequences: Sequence[Ids], activation_tokens: int) -> None:
        self._encoder, self._encoding, self._sequences = encoder, encoding, sequences
        self._once, self._again = TokenCount(), TokenCount()
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        cuts = chunks(lengths, encoding.token_budget)
        padded = [len(rows) * int(lengths[rows[0]]) for rows in cuts]
        # The last ones, because they are of short sequences: attention keeps length² numbers.
        kept = int((np.cumsum(padded[::-1]) <= activation_tokens).sum())
        first = len(cuts) - kept
        self._left = _spans(cuts[:first], padded[:first], activation_tokens)
        self._kept_spans = _spans(cuts[first:], padded[first:], activation_tokens)
        self._random: list[RandomState] = []

        vectors = []
        with torch.no_grad():
            for span in self._left:
                self._random.append(_random_state(encoding.device))
                vectors.append(self._encode(span, self._once))
        self._kept = [self._encode(span, self._once) for span in self._kept_spans]
        together = torch.cat([*vectors, *(kept.detach() for kept in self._kept)])
        back = torch.from_numpy(np.argsort(np.concatenate(cuts), kind="stable")).to(encoding.device)
        self.vectors = together.index_select(0, back).requires_grad_()

    def backward(self) -> None:
        """Add to the weights' gradients what the gradient of `vectors` makes of them; once."""
        for span in self._kept_spans:  # first, so that their activations are gone when others come
            self._back_propagate(self._kept.pop(0), span)
        device = self._encoding.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for span, state in zip(self._left, self._random, strict=True):
                _draw_from(state, device)
                self._back_propagate(self._encode(span, self._again), span)

    @property
    def count(self) -> TokenCount:
        """What went through the encoder; its FLOPs are those of all passes, a backward pass taken as two forward ones.

        Tokens are counted once, also where they are encoded twice.
        """
        return TokenCount(self._once.tokens, self._once.padded, 3 * self._once.flops + self._again.flops)

    def _encode(self, span: Span, count: TokenCount) -> Tensor:
        together = [[self._sequences[row] for row in rows] for rows in span]
        return torch.cat(list(self._encoding.encode_chunks(self._encoder, together, count)))

    def _back_propagate(self, vectors: Tensor, span: Span) -> None:
        assert self.vectors.grad is not None, "the loss is not back-propagated yet"
        rows = torch.from_numpy(np.concatenate(span)).to(self._encoding.device)
        torch.autograd.backward(vectors, self.vectors.grad.index_select(0, rows))


def _spans(cuts: Span, padded: Sequence[int], activation_tokens: int) -> list[Span]:
    """Chunks that share one cast of the weights and one backward pass, within the budget: at most `GROUP` of them.

    Within a span autograd adds up the gradients of a weight in the precision that it was cast to, and over spans in
    that of the weight.
    """
    spans: list[Span] = []
    tokens = 0
    for rows, size in zip(cuts, padded, strict=True):
        if not spans or len(spans[-1]) == GROUP or tokens + size > activation_tokens:
            spans.append([])
            tokens = 0
        spans[-1].append(rows)
        tokens += size
    return spans


def _random_state(device: torch.device) -> RandomState:
    """Where the generators that dropout draws from stand."""
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def _draw_from(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
