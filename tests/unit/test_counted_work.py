"""The work of the training core, counted: FLOPs of a step as PyTorch counts them, padding of batches of real lengths,
sequences encoded a batch, steps of the optimizer, operators a chunk. Counts do not depend on the pace of a machine: a
change that makes training slower shows here.

The numbers under PINS are to be lowered by a change that saves work; one that raises them should know why.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training
import torch
from tiny import FAMILIES, model, sequences
from tiny_training import Recorder, run
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import losses
from data import BatchPlan, Examples, RandomNegatives
from data.formats.beir import read_beir
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding, TokenCount
from orchestrator.gradient_cache import GradientCache

SCIFACT = Path(__file__).parents[2] / "examples" / "scifact"
CPU = torch.device("cpu")

# Operators of a chunk that goes through two layers of BERT with mean pooling, the encoding and its backward pass.
PINS = {
    # (precision, where): (matrix products, operators that compute: views and allocations left out)
    ("fp32", "forward"): (12, 41),
    ("fp32", "backward"): (24, 90),
    ("bf16", "forward"): (12, 45),
    ("bf16", "backward"): (24, 98),
}
CASTS = 5  # a chunk: what goes into the products of 2 layers, and the mask of pooling
SPAN_CASTS = 17  # however many chunks: weights and biases of 4 products in each of 2 layers, and the token ids

# Share of the positions computed that carry no text, by the length that documents are cut to (queries: 64).
PADDING = {64: 0.092, 256: 0.094}


def encoder(family: str = "bert") -> BiEncoder:
    backbone = model(family, layers=2, dropout=0.0)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return BiEncoder(backbone, "mean", True).train()


@pytest.mark.parametrize("activation_tokens", [1, 60, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_a_step_are_what_pytorch_counts(family: str, activation_tokens: int) -> None:
    trained, rows = encoder(family), sequences([11, 6, 11, 3, 8, 5])
    encoding = Encoding(CPU, "fp32", 22, pad_id=trained.config.pad_token_id)
    with FlopCounterMode(display=False) as counter:
        cache = GradientCache(trained, encoding, rows, activation_tokens)
        cache.vectors.sum().backward()  # type: ignore[no-untyped-call]
        cache.backward()
    assert cache.count.flops == counter.get_total_flops() > 0


@pytest.mark.parametrize("activation_tokens", [1, 10_000])
def test_flops_of_a_run_are_what_pytorch_counts(tmp_path: Path, activation_tokens: int) -> None:
    recorder = Recorder()
    with FlopCounterMode(display=False) as counter:
        run(losses.build("infonce"), tmp_path, recorder, token_budget=24, activation_tokens=activation_tokens)
    (training, _) = recorder.costs[-1]
    # The loss: cos of 4 queries and 8 documents of 32 dimensions, forward and backward; and of the 4 triples, to watch.
    loss = 6 * 2 * 32 * (3 * 4 * 8 + 4)
    assert counter.get_total_flops() - training.flops == loss
    assert loss < 0.01 * training.flops


class Positions(nn.Module):
    """Stands for an encoder where only the shapes of what is encoded matter."""

    backbone = None

    class config:  # noqa: N801 - stands for a configuration
        hidden_size, num_hidden_layers, intermediate_size = 1, 1, 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids[:, :1].float()


@pytest.mark.parametrize(("document_tokens", "share"), PADDING.items())
def test_padding_of_batches_of_real_lengths(document_tokens: int, share: float) -> None:
    """SciFact; 1.4 tokens a word, and two special ones."""
    collection = read_beir(SCIFACT)

    def rows(texts: Any, most: int) -> list[np.ndarray]:
        return [np.zeros(min(most, 2 + len(text.split()) * 7 // 5), np.int32) for text in texts.to_pylist()]

    queries = rows(collection.queries["text"], 64)
    documents = rows(collection.documents["text"], document_tokens)
    qrels = collection.qrels["train"]
    plan = BatchPlan(Examples.of(qrels), RandomNegatives(len(documents), qrels, 1), 32, epochs=1, seed=13)
    count, encoding = TokenCount(), Encoding(CPU, "fp32", 4096, pad_id=0)
    for step in range(plan.total_steps):
        batch = plan.batch(step)
        encoded = [queries[row] for row in {*batch.queries.tolist()}]
        encoded += [documents[row] for row in {*batch.positives.tolist(), *batch.negatives.ravel().tolist()}]
        encoding.encode(Positions(), encoded, count)  # type: ignore[arg-type]
    assert 1 - count.tokens / count.padded <= share


@pytest.mark.parametrize("activation_tokens", [1, 10_000])
def test_each_distinct_row_is_encoded_once_a_batch_and_once_more_where_it_was_not_kept(
    tmp_path: Path, activation_tokens: int
) -> None:
    trained, seen = tiny_training.encoder(), []
    pool = trained.pool
    trained.pool = lambda states, *rest: (seen.append(len(states)), pool(states, *rest))[1]  # type: ignore[method-assign]
    of = tiny_training.plan(K=2)
    run(
        losses.build("infonce"),
        tmp_path,
        Recorder(),
        trained=trained,
        of=of,
        token_budget=24,
        activation_tokens=activation_tokens,
    )
    distinct = 0
    for step in range(6):
        batch = of.batch(step)
        distinct += len({*batch.queries.tolist()})
        distinct += len({*batch.positives.tolist(), *batch.negatives.ravel().tolist()})
    assert distinct < 6 * 4 * 4, "some rows stand twice in a batch"
    assert sum(seen) == distinct * (1 if activation_tokens > 1 else 2)


@pytest.mark.parametrize("activation_tokens", [1, 10_000])
def test_one_step_of_the_optimizer_a_batch(tmp_path: Path, activation_tokens: int) -> None:
    steps: list[int] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: steps.append(1))
    try:
        run(losses.build("infonce"), tmp_path, Recorder(), token_budget=24, activation_tokens=activation_tokens)
    finally:
        hook.remove()
    assert len(steps) == tiny_training.plan().total_steps == 6


class Operators(TorchDispatchMode):
    """Counts the aten operators that run."""

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")
    FREE = ("empty", "new_empty", "detach", "alias", "_unsafe_view")  # move nothing

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        views = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not views and not name.startswith(self.FREE):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def products(self) -> int:
        return sum(count for name, count in self.counts.items() if name.startswith(self.PRODUCTS))


def chunk_counts(precision: str, chunks: int) -> dict[str, Operators]:
    """Operators of a forward and a backward pass over so many chunks."""
    trained, rows = encoder(), sequences([6] * 3 * chunks)
    encoding = Encoding(CPU, precision, 18, pad_id=0)
    with Operators() as forward:
        cache = GradientCache(trained, encoding, rows, 10_000)
    cache.vectors.grad = torch.ones_like(cache.vectors)
    with Operators() as backward:
        cache.backward()
    return {"forward": forward, "backward": backward}


@pytest.mark.parametrize(("precision", "where"), PINS)
def test_operators_a_chunk(precision: str, where: str) -> None:
    # The difference of four chunks and three: what is done once a step is in neither.
    four, three = (chunk_counts(precision, chunks)[where] for chunks in (4, 3))
    operators = four.counts - three.counts
    found = (four.products - three.products, operators.total())
    assert found == PINS[precision, where], f"{found}: {dict(operators)}"


@pytest.mark.parametrize(("chunks", "spans"), [(1, 1), (4, 1), (17, 2)])
def test_weights_are_cast_once_a_span(chunks: int, spans: int) -> None:
    assert chunk_counts("bf16", chunks)["forward"].counts["_to_copy"] == CASTS * chunks + SPAN_CASTS * spans


def test_weights_are_cast_once_a_span_in_gradient_caching() -> None:
    trained, encoding = encoder(), Encoding(CPU, "bf16", 18, pad_id=0)
    with Operators() as both:
        cache = GradientCache(trained, encoding, sequences([6] * 3 * 4), 36)  # two spans; the first is encoded twice
        cache.vectors.grad = torch.ones_like(cache.vectors)
        with Operators() as backward:
            cache.backward()
    forward = both.counts["_to_copy"] - backward.counts["_to_copy"]
    assert forward == CASTS * 4 + SPAN_CASTS * 2
