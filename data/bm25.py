"""BM25 ranks of documents for queries: hard negatives, and the hard part of a validation pool."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.arrow import read_arrow
from data.collection import Collection, Rows
from data.sharded import Shard, run_shards
from data.store import Json, Stage, Store, fingerprint, manifest

VERSION = 1
SHARD_QUERIES = 4_096


def rank(
    store: Store,
    collection: Collection,
    query_rows: Rows,
    depth: int,
    connect: Callable[[], object] | None = None,
    *,
    on_shard: Callable[[int, int], None] | None = None,
) -> Rows:
    """The `depth` best documents of each query by BM25, best first: (len(query_rows), depth) document rows.

    Only documents that share a term with the query are ranked; where these (or the corpus) are fewer than `depth`, the
    rest of the row is -1. Equal scores stand in the order of the rows. bm25s with its defaults: Lucene's variant,
    k1 = 1.5, b = 0.75, lower case, words of two letters or more, no English stop words, no stemming.

    `connect` connects to Ray, whose workers take one CPU each and map one index; without it, or if there is but one
    shard of queries, this process does the work.
    """
    index = _index_stage(store, collection).build(
        lambda partial: _index(collection.documents["text"].to_pylist(), partial)
    )
    shards = math.ceil(len(query_rows) / SHARD_QUERIES)

    def make(partial: Path) -> None:
        arguments = {
            "index": index,
            "queries": collection.queries["text"].take(pa.array(query_rows)).to_pylist(),
            "depth": depth,
        }
        numbered = [Shard(partial, number) for number in range(shards)]
        elsewhere = connect if shards > 1 else None  # one shard is no work for several
        run_shards(numbered, Rank, arguments, on_shard=on_shard, connect=elsewhere)

    folder = ranks_stage(store, collection, query_rows, depth).build(make)
    tables = (read_arrow(Shard(folder, shard).path) for shard in range(shards))
    parts = [np.from_dlpack(table["documents"].chunk(0).values).reshape(-1, depth) for table in tables]
    return np.concatenate([np.empty((0, depth), np.int64), *parts])


def ranks_stage(store: Store, collection: Collection, query_rows: Rows, depth: int) -> Stage:
    """Where the ranks are kept."""
    inputs: dict[str, Json] = {
        "documents": collection.parts["documents"],
        "queries": collection.parts["queries"],
        "query_rows": fingerprint(np.asarray(query_rows, np.int64).tolist()),
        "depth": depth,
    }
    return store.stage("bm25", VERSION, inputs)


def rank_seconds(store: Store, collection: Collection, query_rows: Rows, depth: int) -> float:
    """What it took to index and to rank, in wall seconds, once it is done."""
    stages = _index_stage(store, collection), ranks_stage(store, collection, query_rows, depth)
    return float(sum(manifest(stage.path)["seconds"] for stage in stages))


def _index_stage(store: Store, collection: Collection) -> Stage:
    return store.stage("bm25-index", VERSION, {"documents": collection.parts["documents"]})


class Rank:
    """The worker: a shard of queries → a table with one column of `depth` document rows."""

    def __init__(self, index: Path, queries: list[str], depth: int) -> None:
        self._index, self._queries, self._depth = index, queries, depth
        self._bm25: Any = None
        if (index / "params.index.json").is_file():
            import bm25s

            self._bm25 = bm25s.BM25.load(index, mmap=True, show_progress=False)

    def __call__(self, shard: Shard) -> pa.Table:
        queries = self._queries[shard.number * SHARD_QUERIES : (shard.number + 1) * SHARD_QUERIES]
        ranked = np.full((len(queries), self._depth), -1, np.int64)
        for row, terms in zip(ranked, _terms(queries), strict=True):
            if self._bm25 is not None and (known := self._bm25.get_tokens_ids(terms)):
                best = _best(self._bm25.get_scores_from_ids(known), self._depth)
                row[: len(best)] = best
        return pa.table({"documents": pa.FixedSizeListArray.from_arrays(pa.array(ranked.ravel()), self._depth)})


def _index(texts: list[str], folder: Path) -> None:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing it sets DEBUG
    tokens = bm25s.tokenize(texts, show_progress=False)
    if not tokens.vocab:  # no document has a term, of which bm25s makes no index: the folder stays empty
        return
    bm25 = bm25s.BM25()
    bm25.index(tokens, show_progress=False)
    bm25.save(folder, show_progress=False)


def _terms(texts: list[str]) -> list[list[str]]:
    import bm25s

    terms: list[list[str]] = bm25s.tokenize(texts, return_ids=False, show_progress=False)
    return terms


def _best(scores: npt.NDArray[np.float32], depth: int) -> npt.NDArray[np.intp]:
    """The rows of the `depth` highest scores above 0, highest first, equal ones by row."""
    place = max(len(scores) - depth, 0)
    least = np.partition(scores, place)[place]
    candidates = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:depth]
