"""The work that all contenders do: SciFact's training triples and documents, and the encoder's folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data import BatchPlan, Examples, RandomNegatives, Store, load
from orchestrator.weights import locate

BATCH, TRIPLES, DOCUMENTS = 32, 512, 1024
ROOT = Path(__file__).resolve().parent.parent
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def write(folder: Path) -> Path:
    """Make `triples.json` and `documents.json` in a folder; returns that of the encoder's files."""
    collection = load(Store(folder / "store"), "beir", ROOT / "examples" / "scifact")
    queries, documents = collection.queries["text"].to_pylist(), collection.documents["text"].to_pylist()
    qrels = collection.qrels["train"]
    plan = BatchPlan(Examples.of(qrels), RandomNegatives(len(documents), qrels, 1), BATCH, epochs=1, seed=13)
    triples = []
    for step in range(TRIPLES // BATCH):
        batch = plan.batch(step)
        for q, p, n in zip(batch.queries, batch.positives, batch.negatives[:, 0], strict=True):
            triples.append({"query": queries[q], "positive": documents[p], "negative": documents[n]})
    (folder / "triples.json").write_text(json.dumps(triples))
    chosen = np.random.default_rng(13).permutation(len(documents))[:DOCUMENTS]
    (folder / "documents.json").write_text(json.dumps([documents[row] for row in chosen]))
    return locate(MODEL).path
