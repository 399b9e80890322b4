"""Length-aware encoding, pinned: chunks cover every row once under the budget; the order of the rows is restored; equal
to encoding one by one, with gradients; what is counted, by hand; FLOPs as PyTorch counts them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, model, save, sequences
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.encoder import BiEncoder, load_encoder
from orchestrator.encoding import Encoding, TokenCount, chunks, forward_flops, pad

LENGTHS = [4, 9, 1, 9, 16, 2, 7, 5]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> BiEncoder:
    folder = save(tmp_path_factory.mktemp("encoding"), layers=2)
    return load_encoder(folder, pooling="mean", normalize=True, dropout=0.5)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200))
def test_chunks_cover_every_row_once_under_the_budget(lengths: list[int], budget: int) -> None:
    cuts = chunks(np.array(lengths, dtype=np.int64), budget)
    assert sorted(row for cut in cuts for row in cut.tolist()) == list(range(len(lengths)))
    for cut in cuts:
        assert len(cut) == 1 or len(cut) * max(lengths[row] for row in cut) <= max(budget, len(cut))
    ordered = [lengths[row] for cut in cuts for row in cut]
    assert ordered == sorted(lengths, reverse=True)
    for cut in cuts[:-1]:  # none has room for the row after it
        assert (len(cut) + 1) * max(1, lengths[cut[0]]) > budget


def test_chunks_by_hand() -> None:
    cut = chunks(np.array([3, 10, 4, 4, 1]), 12)
    assert [c.tolist() for c in cut] == [[1], [2, 3, 0], [4]]  # 10 alone; 3 × 4 = 12; the rest


def test_pad_by_hand() -> None:
    ids, mask = pad([np.array([7, 8, 9], np.int32), np.array([5], np.int32)], pad_id=1)
    assert ids.tolist() == [[7, 8, 9], [5, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize("budget", [1, 16, 40, 10_000])
def test_equals_encoding_one_by_one_in_order(encoder: BiEncoder, budget: int) -> None:
    encoding, rows = Encoding(CPU, "fp32", budget, pad_id=0), sequences(LENGTHS)
    with torch.no_grad():
        alone = torch.cat([encoder(*pad([row], 0)) for row in rows])
    torch.testing.assert_close(encoding.embed(encoder, rows), alone, atol=1e-5, rtol=0)
    together = encoding.encode(encoder, rows)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert together.requires_grad


def test_the_gradient_is_that_of_one_by_one(encoder: BiEncoder) -> None:
    rows, weights = sequences(LENGTHS), torch.linspace(-1, 1, len(LENGTHS))[:, None]
    parameters = list(encoder.backbone.encoder.parameters())
    chunked = Encoding(CPU, "fp32", 24, pad_id=0).encode(encoder, rows)
    alone = torch.cat([encoder(*pad([row], 0)) for row in rows])
    for ours, theirs in zip(
        torch.autograd.grad((chunked.cumsum(1) * weights).sum(), parameters),
        torch.autograd.grad((alone.cumsum(1) * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_nothing_to_encode(encoder: BiEncoder) -> None:
    count = TokenCount()
    assert Encoding(CPU, "fp32", 16, pad_id=0).embed(encoder, [], count).shape == (0, 32)
    assert count == TokenCount()


def test_embed_is_without_dropout_and_leaves_the_mode_as_it_was(encoder: BiEncoder) -> None:
    encoding, rows = Encoding(CPU, "fp32", 40, pad_id=0), sequences(LENGTHS)
    at_rest = encoding.embed(encoder, rows)
    assert not encoder.training
    encoder.train()
    try:
        assert torch.equal(encoding.embed(encoder, rows), at_rest)
        assert encoder.training
        assert not torch.allclose(encoding.encode(encoder, rows), at_rest, atol=1e-3)
    finally:
        encoder.eval()
    assert not at_rest.requires_grad


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cores_side_by_side_give_what_one_core_gives(encoder: BiEncoder, precision: str, two_cores: None) -> None:
    rows = sequences(LENGTHS * 3)
    encoding, many, one = Encoding(CPU, precision, 20, pad_id=0), TokenCount(), TokenCount()
    threads: set[int] = set()

    def seen(*_: object) -> None:
        threads.add(threading.get_ident())
        assert torch.get_num_threads() == 1

    with encoder.backbone.embeddings.register_forward_hook(seen):
        side_by_side = encoding.embed(encoder, rows, many)
    assert threading.get_ident() not in threads
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(encoding.embed(encoder, rows, one), side_by_side)
    assert many == one


def test_a_failure_on_one_core_is_raised_and_leaves_the_cores_as_they_were(encoder: BiEncoder, two_cores: None) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    with encoder.backbone.embeddings.register_forward_hook(fail), pytest.raises(MemoryError, match="no room"):
        Encoding(CPU, "fp32", 20, pad_id=0).embed(encoder, sequences(LENGTHS))
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:  # and threads that come later start from as many
        assert pool.submit(torch.get_num_threads).result() == 2


def test_bf16_is_near_and_comes_out_as_float32(encoder: BiEncoder) -> None:
    rows = sequences(LENGTHS)
    full = Encoding(CPU, "fp32", 40, pad_id=0).embed(encoder, rows)
    half = Encoding(CPU, "bf16", 40, pad_id=0).embed(encoder, rows)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert (half * full).sum(1).min() > 0.999  # cosines


def test_counts_by_hand(encoder: BiEncoder) -> None:
    count = TokenCount()
    encoding = Encoding(CPU, "fp32", 20, pad_id=0)
    encoding.embed(encoder, sequences([4, 9, 1, 9]), count)  # chunks: two of 9; one of 4 with the one of 1
    assert (count.tokens, count.padded) == (23, 2 * 9 + 2 * 4)
    # D = 32, F = 64, two layers: 2 (4 D D + 2 D F) = 16384 a token, and attention's 4 L D = 128 L.
    # Products of the 23 tokens; attention over the padded chunks.
    assert count.flops == 2 * (23 * 16384 + 18 * 128 * 9 + 8 * 128 * 4)
    encoding.embed(encoder, sequences([3]), count)  # counts add up
    assert (count.tokens, count.padded) == (26, 29)


@pytest.mark.parametrize("family", [*FAMILIES, "nomic_bert"])
def test_flops_are_what_pytorch_counts(family: str) -> None:
    backbone = model(family, layers=3)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    ids, mask = pad(sequences([6, 11]), backbone.config.pad_token_id)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(input_ids=ids, attention_mask=mask)
    assert forward_flops(backbone.config, 2, 11, 22) == counter.get_total_flops()


def test_the_padding_id_of_the_experiment_reaches_the_encoder(tmp_path: Path) -> None:
    roberta = load_encoder(save(tmp_path, "roberta", layers=1), pooling="mean", normalize=True)
    layer = roberta.backbone.encoder.layer[0]
    layer.output.dense = torch.nn.Sequential(layer.output.dense)  # adapted: left to transformers, which pads
    seen: list[torch.Tensor] = []
    roberta.backbone.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    Encoding(CPU, "fp32", 100, pad_id=1).embed(roberta, sequences([3, 1]))
    assert (seen[0][1, 1:] == 1).all()


@pytest.mark.parametrize("limit", [20, 7])
def test_smaller_chunks_where_the_memory_is_full(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, rows, tried = BiEncoder(model("bert"), "mean", True).eval(), sequences([9, 3, 7, 5, 6, 2, 8]), []
    plain = Encoding._embed_chunks

    def tight(self: Encoding, encoder: Any, chunks: Any, count: Any) -> Any:
        tried.append(max(len(chunk) * len(chunk[0]) for chunk in chunks))
        if tried[-1] > limit:
            raise torch.OutOfMemoryError
        return plain(self, encoder, chunks, count)

    encoding, count = Encoding(torch.device("cpu"), "fp32", 100, pad_id=0), TokenCount()
    expected = encoding.embed(encoder, rows, count)
    monkeypatch.setattr(Encoding, "_embed_chunks", tight)
    if limit < 9:
        with pytest.raises(torch.OutOfMemoryError):
            encoding.embed(encoder, rows)
        return
    again = TokenCount()
    torch.testing.assert_close(encoding.embed(encoder, rows, again), expected)
    assert tried[0] > limit >= tried[-1]
    assert again.tokens == count.tokens == sum(map(len, rows))
