"""Training beside sentence-transformers: triples a second on SciFact, MiniLM-L6, 200 tokens, batch 32, InfoNCE.

make bench, or python benchmarks/bench_training.py [rounds]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import workload
from contest import OTHERS, OURS, Contender, contest, rate, ratio

from orchestrator.cluster import local_cpus
from orchestrator.precision import cpu_precision

STEPS = 4  # a round, after a first step that is not counted


def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of this machine's matrix products, at the size of a feed-forward layer of BERT-base."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, device=device, dtype=dtype) for size in ((4096, 768), (768, 3072)))
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / 5)
    return 2 * 4096 * 768 * 3072 / statistics.median(seconds) / 1e9


def main(rounds: int) -> None:
    torch.set_num_threads(local_cpus())
    fast = "bf16" if torch.cuda.is_available() else cpu_precision()
    peaks = {"fp32": peak(torch.float32)}
    if fast == "bf16":  # without instructions for it, this would take an hour
        peaks["bf16"] = peak(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        model = workload.write(Path(folder))
        contenders = [
            Contender(f"{who} {precision}", script, (folder, str(model), precision, str(STEPS)), python)
            for who, script, python in (
                ("stillhouse", "train_stillhouse.py", OURS),
                ("sentence-transformers", "train_sentence_transformers.py", OTHERS),
            )
            for precision in dict.fromkeys((fast, "fp32"))
        ]
        results = contest(contenders, rounds)
    print("matrix products:", ", ".join(f"{gflops:.0f} GFLOP/s in {name}" for name, gflops in peaks.items()))
    for name, done in results.items():
        used = [r.notes["gflops"] / peaks[name[-4:]] for r in done if "gflops" in r.notes]
        share = f", {statistics.median(used):.0%} of the products' rate" if used else ""
        losses = ", ".join(f"{r.notes['loss']:.3f}" for r in done)
        print(f"{name:<28} {rate(done):6.1f} triples/s{share}; loss a round {losses}")
    for precision in dict.fromkeys(("fp32", fast)):
        other = f"sentence-transformers {precision}"
        print(f"stillhouse {fast} / {other}: {ratio(results, f'stillhouse {fast}', other)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
