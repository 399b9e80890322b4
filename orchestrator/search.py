"""Exact top-k search by inner product, and approximate search with its recall against exact.

Ties are broken as trec_eval does, by document id in descending order, and before the cut-off: among documents that tie
at the last rank, those that stay are the ones that trec_eval would have ranked first. So a run is a function of the
embeddings alone, not of shards, threads or the order of the corpus.

faiss alone cannot give that: its float32 scores differ in the last bits with the block that a pair is computed in, so
two copies of a document do not always tie. faiss therefore proposes candidates, and every candidate that rounding
could have moved across the cut-off is scored again in float64 and rounded once to float32.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError

EXACT = "Flat"
EXAMPLES = 'Use "Flat" (exact), "IVF256,Flat", "HNSW32" or "IVF256,PQ32"'

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

_log = logging.getLogger(__name__)
_SPARE = 64  # candidates fetched beyond the cut-off, so that a second look is rare
_BLOCK = 1 << 24  # numbers held at once while scoring again: 128 MB in float64


class Hits(NamedTuple):
    """The best documents of each query, best first.

    `scores` is (Q, depth) float32 and `rows` (Q, depth) int64, the row in the corpus. Where an approximate index found
    fewer, the rest of the line is -inf and row -1. `recall` is the share of the exact top `depth` that was found.
    """

    scores: Floats
    rows: Rows
    recall: float = 1.0


def search(
    queries: Floats,
    documents: Floats,
    depth: int,
    index: str = EXACT,
    *,
    ids: Sequence[str],
    threads: int | None = None,
) -> Hits:
    """The `depth` documents with the highest inner product to each query; see `search_shards`."""
    return search_shards(queries, [documents], depth, index, ids=ids, threads=threads)


def search_shards(
    queries: Floats,
    shards: Sequence[Floats],
    depth: int,
    index: str = EXACT,
    *,
    ids: Sequence[str],
    threads: int | None = None,
) -> Hits:
    """The same over a corpus in several parts, each searched apart: exact search gives the same hits however it is cut.

    Args:
        queries: (Q, D) float32.
        shards: arrays (N_s, D) float32, memory-mapped or not; row 0 of the second follows the last row of the first.
        depth: hits per query, at least 1; capped at the size of the corpus.
        index: "Flat", or any faiss factory string (one index per shard, trained on its documents).
        ids: the document ids of all shards in row order; they break ties.
        threads: CPU cores to use; all that this process may use by default.

    Raises UserError where the index cannot be built, or where an embedding is not finite.
    """
    documents = sum(len(shard) for shard in shards)
    if depth < 1 or not documents or documents != len(ids):
        raise ValueError(f"depth {depth}, {documents} documents, {len(ids)} ids")
    depth = min(depth, documents)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if index != EXACT:
        _empty_index(index, queries.shape[1])  # a misspelt index is told before the work, not after
    with _faiss_threads(threads):
        exact = merge([_exact(queries, shard, depth, first, ids) for first, shard in _placed(shards)], depth, ids)
        if index == EXACT:
            return exact
        found = merge(
            [_approximate(queries, shard, depth, first, index) for first, shard in _placed(shards)], depth, ids
        )
    found = found._replace(recall=recall(found.rows, exact.rows))
    _log.info("index %s: recall %.4f of the exact top %d", index, found.recall, depth)
    return found


def merge(parts: Sequence[Hits], depth: int, ids: Sequence[str]) -> Hits:
    """The `depth` best of several parts of a corpus, each searched to at least `depth`; rows are rows of the whole."""
    scores = np.concatenate([part.scores for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    scores, rows = _ranked(scores, rows, ids)
    return Hits(scores[:, :depth], rows[:, :depth])


def recall(found: Rows, exact: Rows) -> float:
    """The share of the exact rows (Q, depth) that were found, averaged over queries; 1.0 without queries."""
    shares = [np.isin(right, left).mean() for left, right in zip(found, exact, strict=True)]
    return float(np.mean(shares)) if shares else 1.0


def _exact(queries: Floats, documents: Floats, depth: int, first: int, ids: Sequence[str]) -> Hits:
    """Brute force over one shard. A query is done once no document that was not fetched can reach its cut-off."""
    import faiss

    count, depth = len(documents), min(depth, len(documents))
    documents = np.ascontiguousarray(documents, dtype=np.float32)
    slack = _rounding(queries, documents)
    scores, rows = np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int64)
    pending, fetch = np.arange(len(queries)), min(count, depth + _SPARE)
    while len(pending):
        undecided = []
        for block in np.array_split(pending, -(-len(pending) * fetch // _BLOCK)):
            rough, candidates = faiss.knn(queries[block], documents, fetch, metric=faiss.METRIC_INNER_PRODUCT)
            for query, row in zip(block, candidates, strict=True):
                score = _products(queries[query], documents, row)[None]
                best, where = _ranked(score, row[None] + first, ids)
                scores[query], rows[query] = best[0, :depth], where[0, :depth]
            if fetch < count:
                undecided.append(block[rough[:, -1] >= scores[block, -1] - slack[block]])
        # Ties as wide as this are rare (a collapsed encoder, a corpus of copies): fetch generously.
        pending, fetch = np.concatenate(undecided or [pending[:0]]), min(count, 8 * fetch)
    return Hits(scores, rows)


def _approximate(queries: Floats, documents: Floats, depth: int, first: int, factory: str) -> Hits:
    """The hits of one shard as the index has them: its own scores, -1 where it found fewer."""
    index = _empty_index(factory, documents.shape[1])
    documents = np.ascontiguousarray(documents, dtype=np.float32)
    try:
        if not index.is_trained:
            index.train(documents)
        index.add(documents)
    except RuntimeError as error:
        raise _cannot_build(factory, f"over {len(documents):,} documents", error) from error
    scores, rows = index.search(queries, min(depth, len(documents)))
    return Hits(np.where(rows < 0, np.float32(-np.inf), scores), np.where(rows < 0, rows, rows + first))


def _empty_index(factory: str, dimension: int) -> Any:
    import faiss

    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _cannot_build(factory, f"for {dimension} dimensions", error) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:  # LSH, for one, ignores the metric that it is given
        raise _cannot_build(factory, f"for {dimension} dimensions", "it does not rank by inner product")
    return index


def _cannot_build(factory: str, what: str, reason: object) -> UserError:
    last = re.sub(r"^Error in .*? at \S+:\d+: |\.$", "", str(reason).strip().splitlines()[-1])
    return UserError(f'faiss cannot build "{factory}" {what}: {last}', where="evaluation.index", mend=f"{EXAMPLES}.")


def _ranked(scores: Floats, rows: Rows, ids: Sequence[str]) -> tuple[Floats, Rows]:
    """Each line of scores and rows (Q, k) by score, then by document id, both descending."""
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    for query in np.flatnonzero((scores[:, 1:] == scores[:, :-1]).any(axis=1)):
        line = rows[query]
        for tied in np.split(np.arange(len(line)), np.flatnonzero(scores[query, 1:] != scores[query, :-1]) + 1):
            if len(tied) > 1:
                line[tied] = sorted(line[tied], key=lambda row: ids[row] if row >= 0 else "", reverse=True)
    return scores, rows


def _products(query: Floats, documents: Floats, rows: Rows) -> Floats:
    """Inner products (k,) in float64, rounded once: the same for a pair wherever its document lies."""
    wide, step = query.astype(np.float64), max(1, _BLOCK // len(query))
    parts = [
        np.einsum("kd,d->k", documents[rows[i : i + step]].astype(np.float64), wide) for i in range(0, len(rows), step)
    ]
    return np.concatenate(parts).astype(np.float32)


def _rounding(queries: Floats, documents: Floats) -> NDArray[np.float64]:
    """How far a float32 inner product can be from the true one, per query (Q,): (D + 2) u |q| max|d| with u = 2^-24.

    Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; it holds for every order of summation.
    """
    lengths = []
    for name, vectors in (("query", queries), ("document", documents)):
        squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
        if not np.isfinite(squares).all():
            raise UserError(
                f"the embedding of {name} {int(np.flatnonzero(~np.isfinite(squares))[0])} is not finite",
                mend="Training has diverged: lower training.learning_rate.",
            )
        lengths.append(np.sqrt(squares))
    bound: NDArray[np.float64] = (queries.shape[1] + 2) * 2.0**-24 * lengths[0] * lengths[1].max()
    return bound


def _placed(shards: Sequence[Floats]) -> Iterator[tuple[int, Floats]]:
    """Each shard that is not empty, with the row of its first document in the whole corpus."""
    first = 0
    for shard in shards:
        if len(shard):
            yield first, shard
        first += len(shard)


@contextmanager
def _faiss_threads(threads: int | None) -> Iterator[None]:
    """Give faiss the cores: in a Ray worker OMP_NUM_THREADS is 1 and faiss would use one of them."""
    import faiss

    before = faiss.omp_get_max_threads()
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    faiss.omp_set_num_threads(threads or available or 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
