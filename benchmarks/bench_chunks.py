"""Encoding without gradients: each core on chunks of its own, by their size, beside all cores on one chunk of 2,048.

make bench, or python benchmarks/bench_chunks.py [rounds]

MiniLM and its half of three layers; lengths drawn like those of SciFact's documents, cut at the limit.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from timing import seconds, spread

from orchestrator import encoding as module
from orchestrator.encoder import BiEncoder, load_encoder
from orchestrator.encoding import Encoding
from orchestrator.packed import Ids
from orchestrator.precision import cpu_precision
from orchestrator.weights import locate

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
FAST = cpu_precision()
CASES = dict.fromkeys(((None, 200, 192, FAST), ((0, 2, 5), 64, 768, FAST), (None, 200, 96, "fp32")))
BUDGETS = (384, 512, 768, 1024)


def main(rounds: int) -> None:
    folder, draw = locate(MODEL).path, np.random.default_rng(0)
    for layers, limit, texts, precision in CASES:
        encoder = load_encoder(folder, pooling="mean", normalize=True, layers=layers)
        lengths = np.minimum(limit, draw.lognormal(5.6, 0.4, texts).astype(int))
        sequences = [draw.integers(1000, 20_000, length).astype(np.int32) for length in lengths]
        print(f"{encoder.config.num_hidden_layers} layers, {limit} tokens, {precision}")
        for budget, found in ratios(encoder, precision, sequences, rounds).items():
            print(f"  {budget:>5} tokens a core: {spread(found)}", flush=True)


def ratios(encoder: BiEncoder, precision: str, sequences: list[Ids], rounds: int) -> dict[int, list[float]]:
    """How many times as fast as all cores together, by the tokens of a core's chunk; the first round is left out."""
    encoding = Encoding.on(torch.device("cpu"), precision, None, 0)
    found: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for number in range(rounds + 1):
        with torch.inference_mode():
            together = seconds(lambda: encoding.encode(encoder, sequences))
        for budget in BUDGETS:
            module.CORE_BUDGET = budget
            took = seconds(lambda: encoding.embed(encoder, sequences))
            if number:
                found[budget].append(together / took)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
