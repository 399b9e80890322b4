"""sentence-transformers' trainer and InfoNCE (MultipleNegativesRankingLoss): folder, model, fp32 or bf16, steps."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from serve import serve
from transformers import TrainerCallback

LENGTH, BATCH = 200, 32


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds between the beginning of the second step and the end of the last."""

    def __init__(self) -> None:
        self.steps, self.began, self.ended = 0, 0.0, 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()
        self.steps += 1
        if self.steps == 1:
            self.began = self.ended


def main(folder: Path, model_folder: str, precision: str, steps: int) -> None:
    disable_progress_bar()
    logging.disable(logging.WARNING)
    triples = json.loads((folder / "triples.json").read_text())
    cuda = torch.cuda.is_available()
    model = SentenceTransformer(model_folder, device="cuda" if cuda else "cpu")
    model.max_seq_length = LENGTH
    rounds = count()

    def run() -> tuple[float, float, dict[str, Any]]:
        first = next(rounds) * (steps + 1) * BATCH % len(triples)
        rows = [triples[(first + i) % len(triples)] for i in range((steps + 1) * BATCH)]
        data = Dataset.from_list(rows).select_columns(["query", "positive", "negative"])
        arguments = SentenceTransformerTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=steps + 1,
            per_device_train_batch_size=BATCH,
            learning_rate=2e-5,
            bf16=precision == "bf16",
            use_cpu=not cuda,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        clock = Clock()
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(model), callbacks=[clock]
        )
        result = trainer.train()
        return steps * BATCH, clock.ended - clock.began, {"loss": result.training_loss}

    serve(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
