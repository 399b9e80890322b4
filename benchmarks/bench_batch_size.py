"""What a batch costs an example and in memory, by its size: all at once, and with gradient caching.

make bench, or python benchmarks/bench_batch_size.py [cost | memory]

Three layers of MiniLM, InfoNCE, one negative a query, queries of 8 to 16 tokens and documents of 16 to 32. `cost` draws
docs/cost-batch-size.svg.
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
import plot
import torch
from timing import spread

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

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3
EXAMPLES = 512  # at least so many a round
ALL, CACHED = 10**9, TrainingSettings().activation_tokens  # `activation_tokens`
WAYS = {
    "all at once": [(batch, ALL) for batch in (16, 32, 64, 128, 256, 512)],
    "gradient caching": [(batch, CACHED) for batch in (1024, 4096)],
}
REFERENCES = ((32, ALL), (512, ALL))  # what ratios are to
MEMORY = [(256, ALL), (1024, ALL), *((batch, tokens) for tokens in (CACHED, 8192) for batch in (256, 1024, 4096))]


class Texts:
    """Token ids of random texts, of between half and all of the longest's tokens."""

    def __init__(self, number: int, longest: int) -> None:
        rng = np.random.default_rng(number + longest)
        lengths = rng.integers(longest // 2, longest + 1, number)
        self.rows = [rng.integers(1000, 20000, length).astype(np.int32) for length in lengths]

    def take(self, rows: Sequence[int]) -> list[Any]:
        return [self.rows[row] for row in np.asarray(rows).tolist()]


class Bench:
    """Trains on random texts."""

    def __init__(self) -> None:
        torch.set_num_threads(local_cpus())
        folder = locate("sentence-transformers/all-MiniLM-L6-v2").path
        self.encoder = load_encoder(folder, pooling="mean", normalize=True, layers=(0, 2, 5))
        self.folder = tempfile.mkdtemp()

    def seconds(self, batch: int, activation_tokens: int) -> float:
        """Wall seconds of training, an example."""
        number = batch * max(1, EXAMPLES // batch)
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
            Encoding.on(torch.device("cpu"), settings.precision, settings.token_budget, pad_id=0),
            validate=lambda encoder, group: Validated(0.0, TokenCount()),
            report=lambda point, costs: points.append(point),
            checkpoints=Checkpoints(Path(self.folder)),
        )
        return points[-1].device_seconds / torch.get_num_threads() / number


def cost() -> None:
    bench = Bench()
    ways = [(name, way) for name, ways in WAYS.items() for way in ways]
    for _, way in ways[:2]:
        bench.seconds(*way)
    rounds = []
    for number in range(ROUNDS):
        print(f"  round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
        rounds.append({way: bench.seconds(*way) for _, way in ways})
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for name, way in ways:
        milliseconds = 1000 * statistics.median(found[way] for found in rounds)
        curves[name].append((way[0], milliseconds))
        line = f"batch {way[0]:>5}  {name:<18}{milliseconds:6.2f} ms an example"
        for reference in REFERENCES:
            line += f"   {spread(found[way] / found[reference] for found in rounds)} of batch {reference[0]}"
        print(line, flush=True)
    plot.lines(ROOT / "docs" / "cost-batch-size.svg", "batch size", "ms an example", curves)


def memory() -> None:
    for batch, activation_tokens in MEMORY:
        command = [sys.executable, __file__, "peak", str(batch), str(activation_tokens)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        way = "all at once" if activation_tokens == ALL else f"activation_tokens {activation_tokens}"
        print(f"batch {batch:>5}  {way:<26} peak {found[1]} MiB, {found[0]} before the first step", flush=True)


def peak(batch: int, activation_tokens: int) -> None:
    """Peak memory of this process before and after a step, MiB."""
    bench = Bench()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    bench.seconds(batch, activation_tokens)
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
