"""One worker and two: triples a second on SciFact, MiniLM-L6, 200 tokens, the same global batch of 32, InfoNCE.

make bench, or python benchmarks/bench_workers.py [rounds]

Two workers of one core each talk by gloo, without Ray. What they exchange: the vectors of the batch, for the in-batch
documents of the loss, and the gradients of all weights.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import workload
from contest import OURS, Contender, contest, rate, ratio

from orchestrator.precision import cpu_precision

STEPS = 4  # a round, after a first step that is not counted
WAYS = {"1 worker of 1 core": (1, 1), "2 workers of 1 core": (2, 1), "1 worker of 2 cores": (1, 2)}


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = workload.write(Path(folder))
        contenders = [
            Contender(
                name,
                "train_stillhouse.py",
                (folder, str(model), cpu_precision(), str(STEPS), f"--workers={workers}", f"--threads={threads}"),
                OURS,
            )
            for name, (workers, threads) in WAYS.items()
        ]
        results = contest(contenders, rounds)
    for name, done in results.items():
        exchanging = statistics.median(r.notes["exchanging"] for r in done)
        losses = ", ".join(f"{r.notes['loss']:.4f}" for r in done)
        print(f"{name:<20} {rate(done):6.2f} triples/s, {exchanging:.1%} of it exchanging; loss a round {losses}")
    one, two, both = WAYS
    print(f"{two} / {one}: {ratio(results, two, one)}")
    print(f"{two} / {both}: {ratio(results, two, both)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
