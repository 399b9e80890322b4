"""A search from end to end: exact, and where an approximate index is asked for, held to the exact one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.records import IndexFigures
from orchestrator.search.approximate import EXACT, approximate, check
from orchestrator.search.exact import Here, exact
from orchestrator.search.scores import pair_scores
from orchestrator.search.tasks import Tasks, over_ray
from orchestrator.search.threads import available, faiss_threads
from orchestrator.search.vectors import Floats, Rows, Shard, parts

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """`scores` (Q, depth) float32 and `rows` (Q, depth) int64 of the hits; `figures` where the index is approximate."""

    scores: Floats
    rows: Rows
    figures: IndexFigures | None = None


def search(
    queries: Floats,
    documents: Floats,
    depth: int,
    index: str = EXACT,
    *,
    ids: Sequence[str],
    threads: int | None = None,
) -> Found:
    """The `depth` documents with the highest inner product to each query; see `search_shards`."""
    return search_shards(queries, [documents], depth, index, ids=ids, threads=threads)


def search_shards(
    queries: Floats,
    shards: Sequence[Shard],
    depth: int,
    index: str = EXACT,
    *,
    ids: Sequence[str],
    threads: int | None = None,
    tasks: Tasks | None = None,
) -> Found:
    """The same over a corpus in shards: exact search gives the same hits however it is cut and wherever it runs.

    Args:
        queries: (Q, D) float32.
        shards: arrays (N_s, D) float32, or files; row 0 of the second follows the last row of the first.
        depth: hits per query, at least 1; capped at the size of the corpus.
        index: "Flat", or any faiss factory string: one index of the whole corpus, built in this process.
        ids: the document ids of all shards in row order; they break ties.
        threads: CPU cores to use in this process; all that it may use by default.
        tasks: exact search by Ray tasks, which have to see the files of the shards; None: in this process.

    Raises UserError where the index cannot be built, or where an embedding is not finite.
    """
    documents = sum(len(shard) for shard in shards)
    if depth < 1 or not documents or documents != len(ids):
        raise ValueError(f"depth {depth}, {documents} documents, {len(ids)} ids")
    depth, threads = min(depth, documents), threads or available()
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if index != EXACT:
        check(index, queries.shape[1])  # a misspelt index is told before the work, not after
    (whole,) = parts(shards, 1)
    with faiss_threads(threads):
        if tasks:
            hits = over_ray(queries, parts(shards, tasks.number), depth, ids, tasks.cpus)
        else:
            hits = exact(queries, Here(whole, threads), depth, ids)
        if index == EXACT:
            return Found(*hits)
        found, figures = approximate(queries, whole, depth, index, hits, threads)
    _log.info("index %s: recall %.4f of the exact top %d", index, figures.recall, depth)
    return Found(*found, figures)


def score_pairs(queries: Floats, shards: Sequence[Shard], query: Rows, rows: Rows) -> Floats:
    """The inner product (P,) of each pair of a query and a document, as a search would give it."""
    (whole,) = parts(shards, 1)
    return pair_scores(np.ascontiguousarray(queries, dtype=np.float32), whole, query, rows)
