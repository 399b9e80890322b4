"""Eager against sdpa attention, in turn in one run: sequences a second of a training step, and their ratio.

python benchmarks/bench_attention.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from orchestrator.cluster import local_cpus
from orchestrator.encoder import load_encoder
from orchestrator.encoding import Encoding
from orchestrator.weights import locate

ROUNDS, SEQUENCES, LENGTH = 7, 64, 160


def main() -> None:
    torch.set_num_threads(local_cpus())
    rng = np.random.default_rng(0)
    folder = locate("sentence-transformers/all-MiniLM-L6-v2").path
    encoder = load_encoder(folder, pooling="mean", normalize=True).train()
    encoding = Encoding(torch.device("cpu"), "bf16", token_budget=4096, pad_id=0)
    sequences = [rng.integers(1000, 20000, LENGTH).astype(np.int32) for _ in range(SEQUENCES)]

    def rate(attention: str) -> float:
        encoder.backbone.set_attn_implementation(attention)  # type: ignore[operator]
        began = time.perf_counter()
        with encoding.autocast():
            vectors = encoding.encode(encoder, sequences)
        vectors.sum().backward()  # type: ignore[no-untyped-call]
        return SEQUENCES / (time.perf_counter() - began)

    for attention in ("eager", "sdpa"):
        rate(attention)
    pairs = [(rate("eager"), rate("sdpa")) for _ in range(ROUNDS)]
    ratios = sorted(eager / sdpa for eager, sdpa in pairs)
    for name, values in zip(("eager", "sdpa"), zip(*pairs, strict=True), strict=True):
        print(f"{name:<6} {statistics.median(values):6.1f} sequences/s (median of {ROUNDS})")
    print(f"eager / sdpa {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
