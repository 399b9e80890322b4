"""Two ranks, pinned: for every registered loss and variant the loss over gathered rows, and the gradients summed over
ranks, are those of a single process; merging, totals and gathering by hand; one process alone exchanges nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ranks import CASES, batch, build, key, relevant, said, together, variants
from safetensors.torch import load_file
from torch import Tensor

from losses import Embeddings
from losses.registry import LOSSES
from orchestrator.group import Group


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    together("gradients,exchanges", folder)
    return folder


@pytest.fixture(scope="module")
def found(ranks: Path) -> list[dict[str, Tensor]]:
    return [load_file(ranks / f"rank-{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("name", [*LOSSES, "scaled"])
def test_loss_and_gradients_are_those_of_a_single_process(
    found: list[dict[str, Tensor]], name: str, K: int, dtype: torch.dtype
) -> None:
    numbers = [number for number, (loss, _) in enumerate(variants()) if loss == name]
    assert numbers, f"ranks.variants() has no {name}"
    assert {key(*case) for case in CASES} == found[0].keys()
    for number in numbers:
        q, p, n, encoder = batch(K, dtype)
        loss = build(*variants()[number]).to(dtype)
        value = loss(Embeddings(encoder(q), encoder(p), encoder(n), relevant(K)), said(K)).loss
        value.backward()
        parameters = [*encoder.parameters(), *loss.parameters()]
        expected = torch.cat([value.detach()[None], *(p.grad.ravel() for p in parameters if p.grad is not None)])
        assert expected[1:].abs().max() > 1e-3
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for rank in found:
            torch.testing.assert_close(
                rank[key(number, K, dtype)],
                expected,
                atol=tolerance,
                rtol=tolerance,
                msg=lambda told, number=number: f"{variants()[number]}: {told}",
            )


def test_exchanges_by_hand(ranks: Path) -> None:
    for rank in (0, 1):
        value = json.loads((ranks / f"exchanged-{rank}.json").read_text())
        assert value == {
            "rank": rank,
            "size": 2,
            "merged": [[1, 2], [2, 4], [1, 2], [2, 4], [1, 2]],
            "total": pytest.approx(1.2, abs=1e-15),
            "large": 2.0**53,  # tokens are counted exactly
            "gathered": [[[0, 0]], [[0, 0]], [[1, 1]], [[1, 1]]],
            "idle": True,
            "largest": 2.0**53,
            "first": [rank == 0, True],
        }


def test_one_process_alone_exchanges_nothing() -> None:
    group, rows = Group(), torch.ones(3, 2)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.sum().backward()
    group.sum_gradients([weight], scale=0.5)
    group.wait()
    assert (group.rank, group.size, group.total(3.5), group.largest(3.5)) == (0, 1, 3.5, 3.5)
    assert group.first_at("here")
    assert group.gather(rows) is rows
    assert group.merge(rows) is rows
    assert weight.grad is not None
    assert weight.grad.tolist() == [1, 1]
