"""Gradient caching, pinned: the gradient of every loss is that of encoding all at once (float64), whatever is kept,
with dropout too; bf16 gradients of spans are summed in float32; the tokens alive never exceed the budget and the bytes
do not grow with the batch; what is encoded again, and its FLOPs, by hand; training, resuming and two ranks likewise.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import tiny_training
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import model, sequences, state_equal
from tiny_training import LOSSES, Recorder, Stopped, run
from torch import Tensor, nn

from losses import Embeddings, Loss
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding, Ids, chunks, forward_flops
from orchestrator.gradient_cache import GradientCache

CPU = torch.device("cpu")
LENGTHS = [4, 9, 3, 9, 16, 3, 7, 5, 12, 6, 3, 8, 11, 4]
B, K = 6, 2
# Queries, then positives, then negatives, as rows of the sequences above: some stand more than once.
INDEX = torch.tensor([0, 1, 2, 3, 3, 4, 5, 6, 5, 7, 8, 9, 10, 11, 12, 13, 5, 6, 7, 13, 10, 10, 8, 9])
BUDGET = 24
SHAPES = [(1, 16), (2, 12), (2, 9), (3, 8), (4, 5), (2, 3)]  # the chunks by hand: sequences, tokens of each
# activation_tokens: how many chunks are encoded once. 6, 26, 50, 68, 92 and 108 tokens are in the last 1, 2, … 6.
KEPT = {1: 0, 5: 0, 6: 1, 25: 1, 26: 2, 67: 3, 68: 4, 92: 5, 107: 5, 108: 6, 10_000: 6}


class Double(BiEncoder):
    """The bi-encoder in float64."""

    def __init__(self, dropout: float) -> None:
        backbone = model("bert", layers=2, dropout=dropout)
        backbone.pooler = None
        super().__init__(backbone, "mean", True)
        self.double().train()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).double()
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def encoding(budget: int = BUDGET, precision: str = "fp32") -> Encoding:
    return Encoding(CPU, precision, budget, pad_id=0)


def value(loss: Loss, vectors: Tensor) -> Tensor:
    q, p, n = vectors.index_select(0, INDEX).split([B, B, B * K])
    return loss(Embeddings(q, p, n.view(B, K, -1)), ranks.said(K, vectors.shape[1])).loss


def gradients(*modules: nn.Module) -> list[Tensor]:
    found = [parameter.grad for module in modules for parameter in module.parameters()]
    for module in modules:
        module.zero_grad(set_to_none=True)
    return [gradient for gradient in found if gradient is not None]


def plain(encoder: BiEncoder, loss: Loss) -> tuple[Tensor, list[Tensor]]:
    """All encoded at once, one backward pass."""
    out = value(loss, encoding().encode(encoder, sequences(LENGTHS)))
    out.backward()
    return out.detach(), gradients(encoder, loss)


def cached(encoder: BiEncoder, loss: Loss, activation_tokens: int) -> tuple[Tensor, list[Tensor]]:
    cache = GradientCache(encoder, encoding(), sequences(LENGTHS), activation_tokens)
    out = value(loss, cache.vectors)
    out.backward()
    cache.backward()
    return out.detach(), gradients(encoder, loss)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradient_of_every_loss_is_that_of_encoding_all_at_once(dropout: float) -> None:
    encoder = Double(dropout)
    for variant in ranks.variants():
        if variant[1].get("error", "l2") != "l2":  # which changes nothing here
            continue
        loss = ranks.build(*variant).double()
        torch.manual_seed(7)
        expected, expected_gradients = plain(encoder, loss)
        assert max(float(gradient.abs().max()) for gradient in expected_gradients) > 1e-3
        after = torch.rand(3)
        for activation_tokens in (1, 50, 10_000):  # none, half and all of the chunks are encoded once
            torch.manual_seed(7)
            out, ours = cached(encoder, loss, activation_tokens)
            assert torch.equal(out, expected), variant  # the same vectors, to the bit
            assert torch.equal(torch.rand(3), after), "what draws next draws the same"
            for gradient, theirs in zip(ours, expected_gradients, strict=True):
                torch.testing.assert_close(
                    gradient, theirs, atol=1e-13, rtol=1e-10, msg=lambda told, of=variant: f"{of}: {told}"
                )


def test_dropout_drops_the_same_in_both_passes() -> None:
    encoder, seen = Double(0.3), []
    encoder.register_forward_hook(lambda module, args, vectors: seen.append((args[0], vectors.detach())))
    cached(encoder, ranks.build("infonce", {}), 1)
    assert len(seen) == 2 * len(SHAPES)
    for (ids, first), (again_ids, again) in zip(seen[: len(SHAPES)], seen[len(SHAPES) :], strict=True):
        assert torch.equal(ids, again_ids)
        assert torch.equal(first, again)
    ids = torch.ones(1, 9, dtype=torch.int64)
    assert not torch.equal(encoder(ids, ids), encoder(ids, ids)), "dropout acts"


def test_gradients_of_spans_are_summed_in_float32() -> None:
    backbone = model("bert", layers=2)
    backbone.pooler = None
    encoder, rows = BiEncoder(backbone, "mean", True), sequences([6] * 40)
    weights = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    one_a_chunk = encoding(6, "bf16")
    total: list[Tensor] = []
    for row, weight in zip(rows, weights, strict=True):  # by hand
        (one_a_chunk.encode(encoder, [row]) * weight).sum().backward()
        alone = gradients(encoder)
        total = [sum_ + gradient for sum_, gradient in zip(total, alone, strict=True)] if total else alone

    def distance(activation_tokens: int) -> float:
        cache = GradientCache(encoder, one_a_chunk, rows, activation_tokens)
        (cache.vectors * weights).sum().backward()
        cache.backward()
        ours = gradients(encoder)
        return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, total, strict=True) if b.norm() > 1)

    assert distance(6) < 1e-5  # spans of one chunk
    assert 1e-4 < distance(10_000) < 1e-2  # of 16 chunks, summed in the precision of the products


class Watched(nn.Module):
    """Watches which calls of an encoder have something kept for the backward pass, and how many bytes."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.calls: list[int] = []
        self.alive: weakref.WeakSet[Call] = weakref.WeakSet()
        self.bytes = self.peak_bytes = self.peak_tokens = 0
        self.own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}

    backbone = None  # through `forward`, where it is watched

    @property
    def config(self) -> Any:
        return self.encoder.config

    @property
    def dimension(self) -> int:
        return int(self.encoder.config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        call = Call(input_ids.numel())
        self.calls.append(call.tokens)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: Kept(x, call, self), lambda kept: kept.tensor):
            vectors = self.encoder(input_ids, attention_mask)
        self.peak_tokens = max(self.peak_tokens, sum(one.tokens for one in self.alive))
        return vectors


class Call:
    """A call of the encoder; alive as long as a tensor is kept for its backward pass."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens


class Kept:
    """What autograd holds in a tensor's place."""

    def __init__(self, tensor: Tensor, call: Call, watched: Watched) -> None:
        self.tensor, self.call, self.watched = tensor, call, watched
        self.size = 0 if tensor.untyped_storage().data_ptr() in watched.own else tensor.nbytes
        watched.alive.add(call)
        watched.bytes += self.size
        watched.peak_bytes = max(watched.peak_bytes, watched.bytes)

    def __del__(self) -> None:
        self.watched.bytes -= self.size


class Words(nn.Module):
    """An encoder of microseconds: mean word vectors."""

    backbone = None

    class config:  # noqa: N801 - stands for a configuration
        hidden_size, num_hidden_layers, intermediate_size = 4, 1, 8

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(80, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).float()
        return nn.functional.normalize((self.words(input_ids) * mask).sum(1) / mask.sum(1), dim=-1)


def step(watched: Watched, rows: list[Ids], budget: int, activation_tokens: int) -> GradientCache:
    cache = GradientCache(watched, encoding(budget), rows, activation_tokens)  # type: ignore[arg-type]
    (cache.vectors.cumsum(1) ** 2).sum().backward()
    cache.backward()
    return cache


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 90), st.integers(1, 300))
def test_the_tokens_alive_never_exceed_the_budget(lengths: list[int], budget: int, activation_tokens: int) -> None:
    watched = Watched(Words())
    step(watched, sequences(lengths), budget, activation_tokens)
    padded = [len(cut) * max(lengths[row] for row in cut) for cut in chunks(np.array(lengths), budget)]
    assert 0 < watched.peak_tokens <= max(activation_tokens, *padded)
    assert len(watched.alive) == watched.bytes == 0, "all is given back"
    # Nothing is encoded twice where all fits; else only as much as has to be.
    again = watched.calls[len(padded) :]
    assert watched.calls[: len(padded)] == padded
    assert again == padded[: len(again)]
    assert sum(padded[len(again) :]) <= activation_tokens
    assert not again or sum(padded[len(again) - 1 :]) > activation_tokens


@pytest.mark.parametrize("activation_tokens", [40, 96])
def test_the_bytes_alive_do_not_grow_with_the_batch(activation_tokens: int) -> None:
    peaks, whole = {}, {}
    for batch in (4, 12, 48, 192):
        for found, tokens in ((peaks, activation_tokens), (whole, 10_000)):
            watched = Watched(tiny_training.encoder().train())
            step(watched, sequences([8] * batch), 32, tokens)  # chunks of 4 × 8 tokens
            found[batch] = watched.peak_bytes
    chunks_alive = activation_tokens // 32
    assert peaks[12] == peaks[48] == peaks[192] == chunks_alive * peaks[4]
    assert [whole[batch] for batch in (12, 48, 192)] == [3 * whole[4], 12 * whole[4], 48 * whole[4]]
    assert peaks[4] == whole[4] > 0


@pytest.mark.parametrize(("activation_tokens", "kept"), KEPT.items())
def test_what_is_encoded_again_and_its_cost_by_hand(activation_tokens: int, kept: int) -> None:
    watched = Watched(tiny_training.encoder().train())
    cache = step(watched, sequences(LENGTHS), BUDGET, activation_tokens)
    again = SHAPES[: len(SHAPES) - kept]
    assert watched.calls == [n * L for n, L in [*SHAPES, *again]]
    once, twice = (sum(forward_flops(watched.config, n, L, n * L) for n, L in shapes) for shapes in (SHAPES, again))
    assert cache.count.flops == 3 * once + twice
    assert (cache.count.tokens, cache.count.padded) == (sum(LENGTHS), 108)


@pytest.mark.parametrize("name", [*LOSSES])
def test_training_is_that_without(tmp_path: Path, name: str) -> None:
    found = []
    for activation_tokens in (10_000, 1):
        loss, recorder = ranks.build(*LOSSES[name]), Recorder()
        trained = run(
            loss,
            tmp_path,
            recorder,
            trained=tiny_training.encoder(dropout=0.2),
            of=tiny_training.plan(K=2),
            token_budget=24,
            activation_tokens=activation_tokens,
        )
        found.append((recorder, {**trained.state_dict(), **{f"loss.{k}": v for k, v in loss.state_dict().items()}}))
    (plain, expected), (cached, ours) = found
    np.testing.assert_allclose([p.loss for p in cached.points], [p.loss for p in plain.points], rtol=1e-4)
    for key in expected:
        if "key.bias" not in key:
            torch.testing.assert_close(ours[key], expected[key], atol=1e-4, rtol=1e-3, msg=key)
    (before, _), (after, _) = plain.costs[-1], cached.costs[-1]
    assert after.tokens == before.tokens
    assert after.flops == before.flops * 4 / 3


def test_stopped_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    changes = {"token_budget": 24, "activation_tokens": 24, "checkpoint_seconds": 0.0}

    def trained(folder: str, stop_after: int | None = None) -> dict[str, Tensor]:
        made, recorder = tiny_training.encoder(dropout=0.2), Recorder(stop_after)
        run(ranks.build("infonce", {}), tmp_path / folder, recorder, trained=made, **changes)
        return made.state_dict()

    whole = trained("whole")
    with pytest.raises(Stopped):
        trained("kept", 3)
    assert state_equal(trained("kept"), whole)


def test_two_ranks(tmp_path: Path) -> None:
    ranks.together("cached", tmp_path)
    found = [load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1)]
    assert state_equal(*found)
    before = tiny_training.weights(tiny_training.encoder())
    for name in ("distributed", "scaled"):
        plain, cached = found[0][f"{name} plain"], found[0][f"{name} cached"]
        assert (plain - before).abs().max() > 2e-3
        torch.testing.assert_close(cached, plain, atol=1e-4, rtol=1e-3)
