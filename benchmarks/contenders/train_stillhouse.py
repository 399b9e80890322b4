"""Stillhouse's training core, without Ray, with InfoNCE, on one worker or on several that talk by gloo."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from serve import serve
from transformers import AutoTokenizer

import losses
from data.plan import Batch
from orchestrator.checkpoints import Checkpoints
from orchestrator.cluster import local_cpus
from orchestrator.config import TrainingSettings
from orchestrator.encoder import load_encoder
from orchestrator.encoding import Encoding, TokenCount
from orchestrator.group import Group
from orchestrator.training import Tokens, Validated, train

LENGTH, BATCH = 200, 32


class Texts:
    """Token ids of a list of texts, by row."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self._ids = [
            np.array(ids, np.int32) for ids in tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
        ]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self._ids], np.int32)

    def take(self, rows: Any) -> list[np.ndarray]:
        return [self._ids[row] for row in rows]


@dataclass
class Steps:
    """Stands for a plan: so many triples after the first, in their order."""

    first: int
    total_steps: int
    triples: int
    seed: int = 13

    def batch(self, step: int) -> Batch:
        rows = (self.first + step * BATCH + np.arange(BATCH)) % self.triples
        return Batch(rows, rows, (rows + self.triples)[:, None])

    def examples_before(self, step: int) -> int:
        return step * BATCH

    def relevant(self, batch: Batch) -> np.ndarray:
        B, K = batch.negatives.shape
        return np.zeros((B, B + B * K), np.bool_)


class ClockedGroup(Group):
    """Adds up the seconds in exchanges between workers, waiting for the other ones included."""

    seconds = 0.0

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        with self._clock():
            return super().gather(rows)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter], *, scale: float = 1.0) -> None:
        with self._clock():
            super().sum_gradients(parameters, scale=scale)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("precision")
    parser.add_argument("steps", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=local_cpus())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = runner(options.folder, options.model, options.precision, options.steps, join(options.workers))
    go = torch.zeros(1)
    if not dist.is_initialized():
        serve(run)
    elif dist.get_rank() == 0:

        def together() -> tuple[float, float, dict[str, Any]]:
            dist.broadcast(go, 0)
            return run()

        serve(together)
    else:
        while True:
            try:
                dist.broadcast(go, 0)
            except RuntimeError:  # rank 0 has ended
                return
            run()


def join(workers: int) -> Callable[[], ClockedGroup]:
    """Start the other workers, if this is the first of several, and find each other."""
    if workers > 1:
        meeting = os.environ.get("BENCH_MEETING") or tempfile.mktemp()
        rank = int(os.environ.get("BENCH_RANK", 0))
        for other in range(1, workers) if rank == 0 else ():
            environment = {**os.environ, "BENCH_MEETING": meeting, "BENCH_RANK": str(other)}
            subprocess.Popen([sys.executable, *sys.argv], env=environment, stdin=subprocess.DEVNULL)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    return ClockedGroup


def runner(
    folder: Path, model: Path, precision: str, steps: int, group_of: Callable[[], ClockedGroup]
) -> Callable[[], tuple[float, float, dict[str, Any]]]:
    """What trains a round: so many steps after a first one that is not counted."""
    triples = json.loads((folder / "triples.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(model)
    documents = [t["positive"] for t in triples] + [t["negative"] for t in triples]
    tokens: Any = Tokens(Texts(tokenizer, [t["query"] for t in triples]), Texts(tokenizer, documents))  # type: ignore[arg-type]
    encoder = load_encoder(model, pooling="mean", normalize=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = TrainingSettings(batch_size=BATCH, learning_rate=2e-5, precision=precision, validations=1)  # type: ignore[arg-type]
    encoding = Encoding.on(device, precision, None, tokenizer.pad_token_id)
    rounds = count()

    def run() -> tuple[float, float, dict[str, Any]]:
        first = next(rounds) * (steps + 1) * BATCH % len(triples)
        plan: Any = Steps(first, steps + 1, len(triples))
        points: list[tuple[float, float, float]] = []
        used: list[Any] = []
        group = group_of()

        def report(point: Any, costs: Any) -> None:
            points.append((time.perf_counter(), point.loss, group.seconds))
            used.extend(costs)

        train(
            plan,
            tokens,
            encoder,
            losses.build("infonce", temperature=0.05),
            settings,
            encoding,
            validate=lambda encoder, group: Validated(0.0, TokenCount()),
            report=report,
            checkpoints=Checkpoints(Path(tempfile.mkdtemp())),
            group=group,
        )
        seconds = points[-1][0] - points[0][0]
        flops = used[0].flops * steps / (steps + 1)
        notes = {
            "loss": float(np.mean([loss for _, loss, _ in points])),
            "gflops": flops / seconds / 1e9,
            "exchanging": (points[-1][2] - points[0][2]) / seconds,
        }
        return steps * BATCH, seconds, notes

    return run


if __name__ == "__main__":
    main()
