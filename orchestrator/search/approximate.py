"""An approximate index by its faiss factory string, and what it costs and loses against exact search.

One index holds the whole corpus. An index per shard would be another thing than the factory string names: each of them
is searched by every query, so latency grows with the shards and recall with the number of cells probed in all.
"""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from data.errors import UserError
from orchestrator.records import IndexFigures
from orchestrator.search.exact import Hits
from orchestrator.search.threads import multiplied
from orchestrator.search.vectors import PIECE, Floats, Part, Rows

EXACT = "Flat"
EXAMPLES = 'Use "Flat" (exact), "IVF256,Flat", "HNSW32" or "IVF256,PQ32"'
_TIMED = 1000  # queries searched one by one for the latency


def check(factory: str, dimension: int) -> None:
    """Raises UserError for a factory string that faiss cannot build, before any work is done."""
    _empty_index(factory, dimension)


def approximate(
    queries: Floats, part: Part, depth: int, factory: str, exact: Hits, threads: int
) -> tuple[Hits, IndexFigures]:
    """The hits as the index has them, with its own scores, and its figures; `exact` are the hits that it is held to."""
    began = time.perf_counter()
    index = _built(factory, part, queries.shape[1], threads)
    build_seconds = time.perf_counter() - began
    index.search(queries[:1], depth)  # the first search starts threads and touches pages
    alone = []
    for query in queries[:_TIMED]:
        began = time.perf_counter()
        index.search(query[None], depth)
        alone.append(time.perf_counter() - began)
    began = time.perf_counter()
    scores, rows = index.search(queries, depth)
    batch_seconds = time.perf_counter() - began
    hits = Hits(np.where(rows < 0, np.float32(-np.inf), scores), rows)
    median, high = np.percentile(alone, [50, 95]) if alone else (0.0, 0.0)
    return hits, IndexFigures(
        index=factory,
        depth=depth,
        recall=recall(rows, exact.rows),
        median_ms=1000 * float(median),
        p95_ms=1000 * float(high),
        queries_per_second=len(queries) / batch_seconds,
        build_seconds=build_seconds,
        bytes=_bytes(index),
        threads=threads,
    )


def recall(found: Rows, exact: Rows) -> float:
    """The share of the exact rows (Q, depth) that were found, averaged over queries; 1.0 without queries."""
    shares = [np.isin(right, left).mean() for left, right in zip(found, exact, strict=True)]
    return float(np.mean(shares)) if shares else 1.0


def _built(factory: str, part: Part, dimension: int, threads: int) -> Any:
    import faiss

    index = _empty_index(factory, dimension)
    if inverted := faiss.try_extract_index_ivf(index):
        quantized: Any = faiss.downcast_index(inverted)
        if hasattr(quantized, "do_polysemous_training"):
            # It trains a filter that search does not use, and takes longer than all the rest.
            quantized.do_polysemous_training = False
    try:
        with multiplied(threads):
            if not index.is_trained:
                index.train(_sample(part, dimension, threads))
            for _, vectors in part.pieces(threads):
                index.add(vectors)
    except RuntimeError as error:
        raise _cannot_build(factory, f"over {len(part):,} documents", error) from error
    return index


def _sample(part: Part, dimension: int, threads: int) -> Floats:
    """What an index is trained on: all vectors, or of a corpus larger than a piece as many as fit one, drawn evenly."""
    rows, total = PIECE // dimension, len(part)
    if total <= rows:
        _, whole = next(part.pieces(threads))
        if len(whole) == total:
            return whole
    chosen = np.random.default_rng(0).permutation(total) < rows
    sample = [vectors[chosen[first : first + len(vectors)]] for first, vectors in part.pieces(threads)]
    return np.concatenate(sample)


def _bytes(index: Any) -> int:
    """How large the index is as a file; it is not held in memory twice to find out."""
    import faiss

    sizes: list[int] = []
    count = faiss.PyCallbackIOWriter(lambda content: sizes.append(len(content)))  # type: ignore[attr-defined]
    faiss.write_index(index, count)
    return sum(sizes)


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
