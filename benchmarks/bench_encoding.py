"""Encoding beside sentence-transformers and OpenVINO: documents a second, 1,024 of SciFact at 200 tokens, MiniLM-L6.

make bench, or python benchmarks/bench_encoding.py [rounds]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import workload
from contest import OTHERS, OURS, Contender, contest, rate, ratio

from orchestrator.precision import cpu_precision

FAST = "bf16" if torch.cuda.is_available() else cpu_precision()
WHO = [
    (who, precision)
    for who in ("stillhouse", "sentence_transformers", "openvino")
    for precision in dict.fromkeys((FAST, "fp32"))
]


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = workload.write(Path(folder))
        results = contest(
            [
                Contender(
                    f"{who} {precision}",
                    "encode.py",
                    (folder, str(model), who, precision),
                    OURS if who == "stillhouse" else OTHERS,
                )
                for who, precision in WHO
            ],
            rounds,
        )
        exact = np.load(Path(folder) / "sentence_transformers-fp32.npy").astype(np.float64)
        for who, precision in WHO:
            vectors = np.load(Path(folder) / f"{who}-{precision}.npy").astype(np.float64)
            cosines = (vectors * exact).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
            name = f"{who} {precision}"
            print(f"{name:<28} {rate(results[name]):6.1f} documents/s, cosine to fp32 at least {cosines.min():.6f}")
    for other in results:
        if not other.startswith("stillhouse"):
            print(f"stillhouse {FAST} / {other}: {ratio(results, f'stillhouse {FAST}', other)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
