"""What a collection costs by its size, stage by stage, and how much of the bare encoder's rate the pipeline keeps.

make bench, or python benchmarks/bench_corpus_size.py [stages | pipeline]

SciFact's documents with their words shuffled, as often as it takes, and its queries; three layers of MiniLM at 64
tokens. `stages` draws docs/cost-corpus-size.svg. `pipeline` encodes the same token shards by the bare encoder in
this process, by the evaluation in this process, and by two Ray Data actors of one CPU.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import plot
import torch
from timing import seconds, spread

from data import Shard, run_shards
from orchestrator import cluster
from orchestrator.config import Experiment
from orchestrator.embeddings import SHARD_TEXTS, EncodeShard, VectorSet
from orchestrator.evaluation import evaluate_all, untrained
from orchestrator.precision import cpu_precision
from orchestrator.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
SCIFACT = ROOT / "examples" / "scifact"
SIZES = (1024, 4096, 16_384, 65_536)
PIPELINE, ROUNDS = 6144, 3


def main() -> None:
    which = sys.argv[1] if len(sys.argv) > 1 else "all"
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        if which in ("all", "pipeline"):
            pipeline(Path(folder))
        if which in ("all", "stages"):
            stages(Path(folder))


def stages(folder: Path) -> None:
    cluster.connect()
    curves: dict[str, list[tuple[float, float]]] = {}
    for size in SIZES:
        found = stages_of(prepared(folder / str(size), size))
        for stage, took in found.items():
            curves.setdefault(stage, []).append((size, took))
        print(f"{size:>6} documents:", ", ".join(f"{stage} {took:.1f} s" for stage, took in found.items()), flush=True)
        shutil.rmtree(folder / str(size))
    plot.lines(ROOT / "docs" / "cost-corpus-size.svg", "documents", "wall seconds", curves, log=True)


def stages_of(workspace: Workspace) -> dict[str, float]:
    """Wall seconds of every stage, the start of its workers included."""
    found = {
        "read": seconds(lambda: workspace.collection),
        "tokenize": seconds(lambda: workspace.tokens),
        "BM25 ranks": seconds(lambda: workspace.negatives),
    }
    wanted = untrained(workspace)
    found["encode"] = seconds(lambda: workspace.embed(wanted[:2]))
    found["search and measure"] = seconds(lambda: evaluate_all(workspace, {"untrained": wanted}))
    return found


def pipeline(folder: Path) -> None:
    workspace = prepared(folder / "pipeline", PIPELINE)
    workspace.tokens  # noqa: B018
    cpus = cluster.local_cpus()
    made = folder / "made"

    def bare() -> float:
        torch.set_num_threads(cpus)
        encoder, encoding = workspace.load_encoder(), workspace.encoding(cpu_precision(), None)
        sequences = workspace.tokens.documents.take(range(PIPELINE))
        return seconds(
            lambda: [
                encoding.embed(encoder, sequences[start : start + SHARD_TEXTS])
                for start in range(0, PIPELINE, SHARD_TEXTS)
            ]
        )

    def shards(documents: int, workers: int, connect: Callable[[], None] | None) -> float:
        rows = np.arange(documents)
        wanted = VectorSet(workspace.starting_model, workspace.tokens.documents, cpu_precision(), None, rows)
        arguments = {"wanted": {str(made.absolute()): wanted}, "threads": cpus // workers}
        took = seconds(
            lambda: run_shards(
                [Shard(made, number) for number in range(wanted.shards)],
                EncodeShard,
                arguments,
                concurrency=workers,
                num_cpus=cpus // workers,
                on_shard=lambda done, total: None,
                connect=connect,
            )
        )
        shutil.rmtree(made)
        return took

    rounds = []
    for number in range(ROUNDS + 1):
        alone, here = bare(), shards(PIPELINE, 1, None)
        few, all_ = (shards(documents, cpus, cluster.connect) for documents in (PIPELINE // 3, PIPELINE))
        steady = (all_ - few) * 3 / 2  # what more documents cost: the start of the actors is in both
        print(
            f"  round {number}: bare {alone:.1f} s, in this process {here:.1f}, "
            f"{cpus} actors {all_:.1f} (a third: {few:.1f})",
            file=sys.stderr,
        )
        if number:
            found = {"in this process": here, f"{cpus} actors": all_, f"{cpus} actors, once started": steady}
            rounds.append({name: alone / took for name, took in found.items()})
    for name in rounds[0]:
        print(f"{name}: {spread(found[name] for found in rounds)} of the bare encoder's rate")


def prepared(folder: Path, size: int) -> Workspace:
    """A workspace with nothing in its store, of a made-up collection of so many documents."""
    collection = folder / "collection"
    (collection / "qrels").mkdir(parents=True)
    with gzip.open(SCIFACT / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        originals = [json.loads(line) for line in file]
    draw = random.Random(size)
    with (collection / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for row, original in enumerate(islice(cycle(originals), size)):
            words = original["text"].split()
            draw.shuffle(words)
            file.write(json.dumps({"_id": f"d{row}", "title": original["title"], "text": " ".join(words)}) + "\n")
    with gzip.open(SCIFACT / "queries.jsonl.gz", "rt", encoding="utf-8") as file:
        queries = [json.loads(line) for line in file]
    with (collection / "queries.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(query) + "\n" for query in queries)
    for split, chosen in (("train", queries[::2]), ("test", queries[1::2])):
        lines = [f"{query['_id']}\td{row}\t1" for row, query in enumerate(chosen)]
        (collection / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    experiment = {
        "name": "bench",
        "collection": {"format": "beir", "path": str(collection), "validation": 0.1},
        "encoder": {
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "layers": [0, 2, 5],
            "query_tokens": 64,
            "document_tokens": 64,
        },
        "negatives": {"source": "bm25", "per_query": 1},
        "recipes": [{"recipe": "arm-adaptive"}],
        "store": str(folder / "store"),
    }
    return Workspace(Experiment.model_validate(experiment), cluster.connect)


if __name__ == "__main__":
    main()
