"""A workspace of a tiny collection and encoder; run as a script, a trial that kills itself with SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tiny  # noqa: F401 - one thread, in the script too

from orchestrator.config import Experiment, RecipeSettings
from orchestrator.records import Progress
from orchestrator.runs import RunSpec, runs_of
from orchestrator.trial import run_trial
from orchestrator.workspace import Workspace

WORDS = ["the", "copper", "oak", "still", "stills", "spirit", "yeast", "of", "in"]
QUERIES, DOCUMENTS = 12, 14


def texts(count: int, words: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, words))) for _ in range(count)]


def beir_files() -> dict[str, str]:
    """Contents of a BEIR folder: twelve training queries with a document each."""
    documents = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts(DOCUMENTS, 9, 1))]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(texts(QUERIES, 5, 2))]
    return {
        "corpus": "".join(json.dumps(document) + "\n" for document in documents),
        "queries": "".join(json.dumps(query) + "\n" for query in queries),
        "train": "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(QUERIES)),
        "test": "query-id\tcorpus-id\tscore\nq0\td1\t1\n",
    }


def experiment(collection: Path, model: Path, store: Path, **training: Any) -> Experiment:
    """Six steps, three validations, a checkpoint after every step."""
    values = {"batch_size": 4, "epochs": 3, "learning_rate": 1e-3, "precision": "fp32", "validations": 3}
    return Experiment.model_validate(
        {
            "name": "tiny",
            "seed": 3,
            "collection": {"path": str(collection), "validation": 0.25},
            "encoder": {"model": str(model), "query_tokens": 8, "document_tokens": 12, "layers": [0, 2]},
            "training": {**values, "checkpoint_seconds": 0.0, **training},
            "recipes": ["arm-adaptive", {"recipe": "static-margin", "tune": {"space": {"target": [0.1, 0.3]}}}],
            "store": str(store),
        }
    )


def run_of(experiment: Experiment, row: int = 0) -> RunSpec:
    settings: RecipeSettings = experiment.recipes[row]
    return runs_of(experiment, settings)[0]


def main() -> None:
    chosen, deadly = Experiment.model_validate_json(sys.argv[1]), int(sys.argv[2])
    seen = 0

    def report(point: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    run_trial(Workspace(chosen), run_of(chosen), report)


if __name__ == "__main__":
    main()
