"""Two processes of a gloo group that run the same function: `together(task, folder)`; the functions are below.

Each is called as `task(group, folder)` on every rank and writes what it found under `folder` as safetensors or JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import losses
from losses import Embeddings, Loss, LossOutput, Signals
from orchestrator.group import Group

SIZE = 2
B, D, WIDTH = 6, 5, 4


def together(task: str, folder: Path) -> None:
    """Run a task on two ranks; a rank that fails fails the test with what it wrote."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, task, str(folder)]
    started = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(SIZE)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)


class Scaled(Loss):
    """A loss with a parameter of its own: the squared distance of cos(q, p) from a learned s."""

    name: ClassVar[str] = "scaled"
    paper: ClassVar[str] = "made up"

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(0.3))

    def compute(self, embeddings: Embeddings, signals: Signals) -> LossOutput:
        P = nn.functional.cosine_similarity(embeddings.queries, embeddings.positives)
        per_example = (P - self.s).square()
        return LossOutput(per_example.mean(), per_example, {})


Variant = tuple[str, dict[str, Any]]


def variants() -> list[Variant]:
    """Every loss at every setting that changes what is computed."""
    targets = [*product((0.3, "adaptive"), (None, "rows", "columns")), ("distributed", None)]
    margins = [
        {"target": target, "in_batch": in_batch, "error": error, "detach_target": detach}
        for (target, in_batch), error, detach in product(targets, ("l2", "l1", "soft"), (False, True))
    ]
    by_name: dict[str, list[dict[str, Any]]] = {
        "margin": margins,
        "triplet": [{"margin": 0.4, "in_batch": in_batch} for in_batch in (None, "rows")],
        "infonce": [
            {"temperature": temperature, "candidates": candidates, "similarity": similarity, "mask": mask}
            for temperature, candidates, similarity, mask in product(
                (0.5, "learned"), ("batch", "own"), ("cosine", "dot"), (None, "teacher")
            )
        ],
        "self-distilled-infonce": [{}],
        "margin-mse": [{}],
        "score-kl": [{"temperature": 0.5, "in_batch": in_batch} for in_batch in (False, True)],
        "listnet": [{"temperature": 0.5, "order": order} for order in ("judged", "teacher")],
        "ranknet": [
            {"temperature": 0.5, "order": order, "weight": weight}
            for order, weight in product(("judged", "teacher"), (None, "ndcg"))
        ],
        "pair-kl": [{"temperature": 0.5}],
        "embedding-matching": [
            {"side": side, "distance": distance}
            for side, distance in product(("query", "document", "both"), ("norm", "squared", "cosine"))
        ],
        "relational-matching": [{"between": between} for between in ("query-document", "query", "document")],
        "weighted-sum": [
            {"terms": "infonce + 0.5*score-kl + 5*embedding-matching", "score-kl.in_batch": True},
            {"terms": "margin + ranknet", "margin.target": "distributed"},
        ],
        "matryoshka": [
            {"loss": "infonce", "dimensions": "2 3"},
            {"loss": "score-kl", "dimensions": 2, "score-kl.in_batch": True},
            {"loss": "triplet", "dimensions": 2, "triplet.margin": 0.4, "triplet.in_batch": "rows"},
        ],
        "scaled": [{}],
    }
    return [(name, parameters) for name, every in by_name.items() for parameters in every]


def build(name: str, parameters: dict[str, Any]) -> Loss:
    return Scaled() if name == "scaled" else losses.build(name, **parameters)


def batch(K: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, nn.Linear]:
    """Features of queries (B, D), positives (B, D) and negatives (B, K, D), and the encoder of all of them."""
    generator = torch.Generator().manual_seed(K)
    q, p, n = (torch.randn(s, generator=generator, dtype=dtype) for s in ((B, D), (B, D), (B, K, D)))
    encoder = nn.Linear(D, WIDTH, dtype=dtype)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return q, p, n, encoder


def said(K: int, width: int = WIDTH) -> Signals:
    """What a teacher says of a batch, in float64."""
    generator = torch.Generator().manual_seed(20 + K)
    shapes = (B, 1 + K), (B, width), (B, 1 + K, width)
    return Signals(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes), "dot")


def relevant(K: int) -> Tensor:
    """A third of what belongs to other queries, (B, B + B·K)."""
    same = torch.eye(B, dtype=torch.bool)
    own = torch.cat([same, same.repeat_interleave(K, dim=1)], dim=1)
    return (torch.rand(own.shape, generator=torch.Generator().manual_seed(30 + K)) < 1 / 3) & ~own


def key(number: int, K: int, dtype: torch.dtype) -> str:
    return f"{number} {K} {dtype}"


CASES = list(product(range(len(variants())), (1, 2), (torch.float64, torch.float32)))


def gradients(group: Group, folder: Path) -> None:
    """Loss and gradients of every variant, the rows shared by the ranks."""
    found: dict[str, Tensor] = {}
    for number, K, dtype in CASES:
        q, p, n, encoder = batch(K, dtype)
        loss = build(*variants()[number]).to(dtype)
        own = slice(group.rank * B // SIZE, (group.rank + 1) * B // SIZE)
        embeddings = Embeddings(*(group.gather(encoder(x[own])) for x in (q, p, n)), relevant(K))
        out = loss(embeddings, said(K))
        out.loss.backward()
        group.sum_gradients(encoder.parameters())
        group.sum_gradients(loss.parameters(), scale=1 / group.size)
        grads = [parameter.grad for parameter in [*encoder.parameters(), *loss.parameters()]]
        found[key(number, K, dtype)] = torch.cat(
            [out.loss.detach()[None], *(g.ravel() for g in grads if g is not None)]
        )
    save_file(found, str(folder / f"rank-{group.rank}.safetensors"))


def exchanges(group: Group, folder: Path) -> None:
    """What a group exchanges beside gradients."""
    rows = torch.zeros(5, 2)
    rows[group.rank :: group.size] = torch.tensor([[1.0, 2.0]]) * (group.rank + 1)
    idle = nn.Parameter(torch.ones(2))  # without gradient
    group.sum_gradients([idle])
    group.wait()
    value = {
        "rank": group.rank,
        "size": group.size,
        "merged": group.merge(rows).tolist(),
        "total": group.total(0.1 + group.rank),
        "large": group.total(2.0**53 - 1 if group.rank else 1.0),
        "gathered": group.gather(torch.full((2, 1, 2), float(group.rank))).tolist(),
        "idle": idle.grad is None,
        "largest": group.largest(2.0**53 - group.rank),
        "first": [group.first_at("here"), group.first_at(f"rank {group.rank}")],
    }
    (folder / f"exchanged-{group.rank}.json").write_text(json.dumps(value))


def main() -> None:
    task, folder, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    meeting = (folder / "meeting").absolute().as_uri()
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=SIZE, timeout=timedelta(seconds=60)
    )
    try:
        for name in task.split(","):
            if name in globals():
                globals()[name](Group(), folder)
            else:
                import tiny_training

                getattr(tiny_training, name)(Group(), folder)
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
