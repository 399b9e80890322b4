"""Encoding without padding, pinned for every family, pooling and ragged lengths (one token and the longest among them):
vectors and gradients of every weight equal those of `transformers` in float64; in bf16 they are as close to fp32 as
those of autocast; what is not known is left to `transformers`.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import FAMILIES, model, sequences
from torch import Tensor, nn

from orchestrator import encoding as module
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding, pad
from orchestrator.packed import architecture

LENGTHS = [9, 1, 38, 9, 3, 38, 16, 2, 7, 5, 38, 38]
CPU = torch.device("cpu")


def bi_encoder(family: str, *, pooling: str = "mean", normalize: bool = True, double: bool = True) -> BiEncoder:
    backbone = model(family)
    return BiEncoder(backbone.double() if double else backbone, pooling, normalize).eval()  # type: ignore[arg-type]


def alone(encoder: BiEncoder, rows: list[np.ndarray]) -> Tensor:
    """Each sequence by itself, through `transformers`."""
    return torch.cat([encoder(*pad([row], 0)) for row in rows])


def gradients(encoder: BiEncoder, vectors: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1, 1, len(vectors), dtype=vectors.dtype)[:, None]
    encoder.zero_grad()
    (vectors.cumsum(1) * weights).sum().backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("budget", [1, 38, 100, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_and_gradients_in_float64(family: str, budget: int) -> None:
    encoder, rows = bi_encoder(family), sequences(LENGTHS)
    assert architecture(encoder.backbone) is not None
    expected = alone(encoder, rows)
    found = Encoding(CPU, "fp32", budget, pad_id=0).encode(encoder, rows)
    tolerance = 1e-5 if family == "modernbert" else 1e-9  # transformers rotates queries and keys in float32
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    ours, theirs = gradients(encoder, found), gradients(encoder, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=100 * tolerance, rtol=10 * tolerance, msg=name)


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_every_pooling(family: str, pooling: str) -> None:
    encoder, rows = bi_encoder(family, pooling=pooling, normalize=False), sequences(LENGTHS)
    found = Encoding(CPU, "fp32", 64, pad_id=0).encode(encoder, rows)
    torch.testing.assert_close(found, alone(encoder, rows), atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_as_close_to_fp32_as_autocast_is(family: str) -> None:
    encoder, rows = bi_encoder(family, double=False), sequences(LENGTHS)
    with torch.no_grad():
        exact = alone(encoder, rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs = alone(encoder, rows).float()
        ours = Encoding(CPU, "bf16", 64, pad_id=0).encode(encoder, rows)
    assert ours.dtype == torch.float32
    off = (ours - exact).norm(dim=1).max()
    assert 0 < off < 1.5 * (theirs - exact).norm(dim=1).max()


def test_sums_of_gradients_do_not_depend_on_the_grouping_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, rows = bi_encoder("bert"), sequences(LENGTHS)
    encode = Encoding(CPU, "fp32", 38, pad_id=0).encode
    together = gradients(encoder, encode(encoder, rows))
    monkeypatch.setattr(module, "GROUP", 2)
    apart = gradients(encoder, encode(encoder, rows))
    for name, gradient in together.items():
        torch.testing.assert_close(apart[name], gradient, atol=1e-10, rtol=1e-9, msg=name)


def test_what_is_left_to_transformers() -> None:
    from transformers import ElectraConfig, ElectraModel

    backbone = model("bert")
    assert architecture(backbone) is not None
    assert architecture(backbone.train()) is None  # it drops out
    adapted = copy.deepcopy(backbone.eval())
    adapted.encoder.layer[0].output.dense = nn.Sequential(adapted.encoder.layer[0].output.dense)
    assert architecture(adapted) is None
    small = ElectraConfig(vocab_size=80, hidden_size=32, embedding_size=32, num_hidden_layers=1, num_attention_heads=2)
    assert architecture(ElectraModel(small)) is None


def test_an_unknown_encoder_has_the_numbers_of_transformers() -> None:
    from transformers import ElectraConfig, ElectraModel

    torch.manual_seed(0)
    small = ElectraConfig(vocab_size=80, hidden_size=32, embedding_size=32, num_hidden_layers=2, num_attention_heads=2)
    encoder = BiEncoder(ElectraModel(small).double(), "mean", True).eval()
    rows = sequences(LENGTHS)
    found = Encoding(CPU, "fp32", 64, pad_id=0).encode(encoder, rows)
    torch.testing.assert_close(found, alone(encoder, rows), atol=1e-9, rtol=0)
