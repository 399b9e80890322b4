"""Negatives mined by an encoder: the documents that it ranks highest for the training queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from orchestrator.search import Tasks, score_pairs, search_shards
from orchestrator.search.vectors import Floats

VERSION = 1
RANKED, POSITIVES = "ranked.arrow", "positives.arrow"


class Ranking(NamedTuple):
    """The best documents of each query, best first: `rows` and `scores` (Q, depth).

    `positives` (Q,) has the score of the query's relevant document, of several the lowest. `cost` is that of the
    vectors and of the search.
    """

    rows: Rows
    scores: Floats
    positives: Floats
    cost: Cost


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

    def ranking(self, store: Store, collection: Collection, embed: Callable[[Sequence[VectorSet]], object]) -> Ranking:
        """The ranking, made unless it is there; `embed` makes the vectors."""
        stage = self.stage(store)
        wanted = [self.documents, self.queries]
        if not stage.done:
            embed(wanted)

        def make(partial: Path) -> None:
            documents, queries = (each.stage(store).path for each in wanted)
            vectors = embeddings.opened(queries)
            shards = embeddings.stored(documents)
            tasks = Tasks.where_they_pay(len(vectors), vectors.shape[1], len(self.documents))
            found = search_shards(vectors, shards, self.depth, ids=collection.document_ids, tasks=tasks)
            write_arrow(pa.table({"document": found.rows.ravel(), "score": found.scores.ravel()}), partial / RANKED)
            line = np.searchsorted(np.unique(self.relevant.query_row), self.relevant.query_row)
            lowest = np.full(len(vectors), np.inf, np.float32)
            np.minimum.at(lowest, line, score_pairs(vectors, shards, line, self.relevant.doc_row))
            write_arrow(pa.table({"score": lowest}), partial / POSITIVES)

        folder = stage.build(make)
        ranked, lines = read_arrow(folder / RANKED), len(self.queries)
        return Ranking(
            numbers(ranked["document"]).reshape(lines, -1),
            numbers(ranked["score"]).reshape(lines, -1),
            numbers(read_arrow(folder / POSITIVES)["score"]),
            self._cost(store, folder),
        )

    def _cost(self, store: Store, folder: Path) -> Cost:
        vectors = embeddings.cost([each.stage(store).path for each in (self.documents, self.queries)], "mining")
        seconds = manifest(folder)["seconds"]
        return replace(
            vectors,
            wall_seconds=vectors.wall_seconds + seconds,
            device_seconds=vectors.device_seconds + seconds * vectors.devices,
        )
