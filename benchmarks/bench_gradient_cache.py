"""Gradient caching: what a batch of 4096 costs an example, against plain steps in turn in one run, and peak memory.

python benchmarks/bench_gradient_cache.py [cost | memory]
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import losses
from data import BatchPlan, Examples, Qrels, RandomNegatives
from orchestrator.checkpoints import Checkpoints
from orchestrator.cluster import local_cpus
from orchestrator.config import TrainingSettings
from orchestrator.encoder import load_encoder
from orchestrator.encoding import Encoding, TokenCount
from orchestrator.records import Progress
from orchestrator.training import Tokens, Validated, train
from orchestrator.weights import locate

ROUNDS = 3
ALL = 10**9
# name: batch size, steps, activation_tokens
WAYS = {
    "plain, batch 32": (32, 16, ALL),
    "plain, batch 512": (512, 2, ALL),
    "cached, batch 4096": (4096, 1, TrainingSettings().activation_tokens),
    "cached, batch 1024, nothing kept": (1024, 1, 1),
}
MEMORY = [
    *((batch, ALL) for batch in (256, 1024)),
    *((batch, tokens) for tokens in (TrainingSettings().activation_tokens, 8192) for batch in (256, 1024, 4096)),
]


class Texts:
    """Token ids of random texts, of between half and all of the longest's tokens."""

    def __init__(self, number: int, longest: int) -> None:
        rng = np.random.default_rng(number + longest)
        lengths = rng.integers(longest // 2, longest + 1, number)
        self.rows = [rng.integers(1000, 20000, length).astype(np.int32) for length in lengths]

    def take(self, rows: Sequence[int]) -> list[Any]:
        return [self.rows[row] for row in np.asarray(rows).tolist()]


class Bench:
    """Three layers of MiniLM, InfoNCE, one negative a query; queries of 8 to 16 tokens, documents of 16 to 32."""

    def __init__(self) -> None:
        torch.set_num_threads(local_cpus())
        folder = locate("sentence-transformers/all-MiniLM-L6-v2").path
        self.encoder = load_encoder(folder, pooling="mean", normalize=True, layers=(0, 2, 5))
        self.folder = tempfile.mkdtemp()

    def seconds(self, batch: int, steps: int, activation_tokens: int) -> float:
        """Wall seconds of training, an example."""
        number = batch * steps
        qrels = Qrels(np.arange(number), np.arange(number), np.ones(number, np.int32))
        settings = TrainingSettings(
            batch_size=batch, epochs=1, learning_rate=1e-7, validations=1, activation_tokens=activation_tokens
        )
        points: list[Progress] = []
        train(
            BatchPlan(Examples.of(qrels), RandomNegatives(2 * number, qrels, 1), batch, epochs=1, seed=0),
            Tokens(Texts(number, 16), Texts(2 * number, 32)),  # type: ignore[arg-type]
            self.encoder,
            losses.build("infonce"),
            settings,
            Encoding(torch.device("cpu"), settings.precision, settings.token_budget, pad_id=0),
            validate=lambda encoder, group: Validated(0.0, TokenCount()),
            report=lambda point, costs: points.append(point),
            checkpoints=Checkpoints(Path(self.folder)),
        )
        return points[-1].device_seconds / torch.get_num_threads() / number


def cost() -> None:
    bench = Bench()
    bench.seconds(32, 2, ALL)
    bench.seconds(512, 1, 1)
    rounds = [{name: bench.seconds(*way) for name, way in WAYS.items()} for _ in range(ROUNDS)]
    for name in WAYS:
        line = f"{name:<34}{1000 * statistics.median(found[name] for found in rounds):6.2f} ms an example"
        for plain in list(WAYS)[:2]:
            ratios = sorted(found[name] / found[plain] for found in rounds)
            line += f"   {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(line, flush=True)


def memory() -> None:
    for batch, activation_tokens in MEMORY:
        command = [sys.executable, __file__, "peak", str(batch), str(activation_tokens)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        way = "plain" if activation_tokens == ALL else f"activation_tokens {activation_tokens}"
        print(f"batch {batch:<6}{way:<26} peak {found[1]} MiB, {found[0]} before the first step", flush=True)


def peak(batch: int, activation_tokens: int) -> None:
    """Peak memory of this process before and after a step, MiB."""
    bench = Bench()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    bench.seconds(batch, 1, activation_tokens)
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    which = sys.argv[1] if len(sys.argv) > 1 else "all"
    if which == "peak":
        peak(int(sys.argv[2]), int(sys.argv[3]))
        return
    if which in ("all", "cost"):
        cost()
    if which in ("all", "memory"):
        memory()


if __name__ == "__main__":
    main()
