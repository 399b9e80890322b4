"""Negatives mined by an encoder: the documents that it ranks highest for the training queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data import Collection, Qrels, Rows, Stage, Store, fingerprint
from data.arrow import numbers, read_arrow, write_arrow
from data.store import manifest
from orchestrator import embeddings
from orchestrator.embeddings import VectorSet
from orchestrator.records import Cost
from orchestrator.search import Shard, Tasks, score_pairs, search_shards
from orchestrator.search.vectors import Floats

VERSION = 1
RANKED, POSITIVES = "ranked.arrow", "positives.arrow"


class Mined(NamedTuple):
    """The best documents of each query, best first: `rows` and `scores` (Q, depth).

    `positives` (Q,) has the score of the query's relevant document, of several the lowest.
    """

    rows: Rows
    scores: Floats
    positives: Floats


def lowest_positives(vectors: Floats, shards: Sequence[Shard], relevant: Qrels) -> Floats:
    """The lowest score of each query's relevant documents (Q,), for vectors (Q, D) of the judged queries by row."""
    line = np.searchsorted(np.unique(relevant.query_row), relevant.query_row)
    lowest = np.full(len(vectors), np.inf, np.float32)
    np.minimum.at(lowest, line, score_pairs(vectors, shards, line, relevant.doc_row))
    return lowest


def write_mined(folder: Path, mined: Mined) -> None:
    """Write what was found."""
    write_arrow(pa.table({"document": mined.rows.ravel(), "score": mined.scores.ravel()}), folder / RANKED)
    write_arrow(pa.table({"score": mined.positives}), folder / POSITIVES)


def read_mined(folder: Path, queries: int) -> Mined:
    """What was found for so many queries."""
    ranked = read_arrow(folder / RANKED)
    rows, scores = (numbers(ranked[name]).reshape(queries, -1) for name in ("document", "score"))
    return Mined(rows, scores, numbers(read_arrow(folder / POSITIVES)["score"]))


@dataclass(frozen=True, eq=False)
class Mining:
    """Which documents an encoder ranks highest for the queries that `relevant` judges.

    Args:
        documents, queries: the vectors; of exactly the judged queries, in ascending order of their rows.
        relevant: judgments above 0 of these queries.
    """

    documents: VectorSet
    queries: VectorSet
    relevant: Qrels
    depth: int

    def stage(self, store: Store) -> Stage:
        """Where the ranking is kept."""
        judged = self.relevant.query_row.tolist(), self.relevant.doc_row.tolist()
        return store.stage(
            "mined",
            VERSION,
            {
                "documents": self.documents.stage(store).fingerprint,
                "queries": self.queries.stage(store).fingerprint,
                "judgments": fingerprint(judged),
                "depth": self.depth,
            },
        )

    def mined(self, store: Store, collection: Collection, embed: Callable[[Sequence[VectorSet]], object]) -> Mined:
        """What the encoder ranks highest, ranked unless it is there; `embed` makes the vectors."""
        stage = self.stage(store)
        wanted = [self.documents, self.queries]
        if not stage.done:
            embed(wanted)

        def make(partial: Path) -> None:
            documents, queries = (each.stage(store).path for each in wanted)
            vectors, shards = embeddings.opened(queries), embeddings.stored(documents)
            tasks = Tasks.where_they_pay(len(vectors), vectors.shape[1], len(self.documents))
            found = search_shards(vectors, shards, self.depth, ids=collection.document_ids, tasks=tasks)
            write_mined(partial, Mined(found.rows, found.scores, lowest_positives(vectors, shards, self.relevant)))

        return read_mined(stage.build(make), len(self.queries))

    def costs(self, store: Store) -> dict[str, Cost]:
        """What the vectors and the search cost, once it is done, by stage of the store."""
        stages = [each.stage(store) for each in (self.documents, self.queries)]
        found = {stage.fingerprint: embeddings.cost([stage.path], "mining") for stage in stages}
        encoded, seconds = next(iter(found.values())), manifest(self.stage(store).path)["seconds"]
        search = Cost(
            stage="mining",
            device=encoded.device,
            devices=encoded.devices,
            wall_seconds=seconds,
            device_seconds=seconds * encoded.devices,
        )
        return {**found, self.stage(store).fingerprint: search}
