"""Stillhouse's training core, without Ray, with InfoNCE: folder, model, fp32 or bf16, steps."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serve import serve
from transformers import AutoTokenizer

import losses
from data.plan import Batch
from orchestrator.checkpoints import Checkpoints
from orchestrator.cluster import local_cpus
from orchestrator.config import TrainingSettings
from orchestrator.encoder import load_encoder
from orchestrator.encoding import Encoding, TokenCount
from orchestrator.training import Tokens, Validated, train

LENGTH, BATCH = 200, 32


class Texts:
    """Token ids of a list of texts, by row."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self._ids = [
            np.array(ids, np.int32) for ids in tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
        ]

    def take(self, rows: Any) -> list[np.ndarray]:
        return [self._ids[row] for row in rows]


@dataclass
class Steps:
    """Stands for a plan: so many triples after the first, in their order."""

    first: int
    total_steps: int
    triples: int
    batch_size: int = BATCH
    seed: int = 13

    def batch(self, step: int) -> Batch:
        rows = (self.first + step * BATCH + np.arange(BATCH)) % self.triples
        return Batch(rows, rows, (rows + self.triples)[:, None])


def main(folder: Path, model_folder: str, precision: str, steps: int) -> None:
    torch.set_num_threads(local_cpus())
    triples = json.loads((folder / "triples.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    documents = [t["positive"] for t in triples] + [t["negative"] for t in triples]
    tokens: Any = Tokens(Texts(tokenizer, [t["query"] for t in triples]), Texts(tokenizer, documents))  # type: ignore[arg-type]
    encoder = load_encoder(Path(model_folder), pooling="mean", normalize=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = TrainingSettings(batch_size=BATCH, learning_rate=2e-5, precision=precision, validations=1)  # type: ignore[arg-type]
    encoding = Encoding.on(device, precision, None, tokenizer.pad_token_id)
    rounds = count()

    def run() -> tuple[float, float, dict[str, Any]]:
        first = next(rounds) * (steps + 1) * BATCH % len(triples)
        plan: Any = Steps(first, steps + 1, len(triples))
        points: list[tuple[float, float]] = []
        used: list[Any] = []

        def report(point: Any, costs: Any) -> None:
            points.append((time.perf_counter(), point.loss))
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
        )
        seconds = points[-1][0] - points[0][0]
        flops = used[0].flops * steps / (steps + 1)
        loss = float(np.mean([loss for _, loss in points]))
        return steps * BATCH, seconds, {"loss": loss, "gflops": flops / seconds / 1e9}

    serve(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
