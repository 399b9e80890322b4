"""The exact top `depth` by inner product, with ties broken as trec_eval does, over a corpus in parts.

faiss alone cannot give that: its float32 scores differ in the last bits with the block that a pair is computed in, so
two copies of a document do not always tie. So it proposes. Each part of the corpus gives the documents that its float32
scores cannot rule out; of all parts together, those that can still be among the best are scored again in float64,
rounded once to float32, and ranked by score and document id. What comes out is a function of the vectors and ids alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from orchestrator.search.scores import Bounds, pair_scores, ranked, rounding
from orchestrator.search.threads import multiplied
from orchestrator.search.vectors import Floats, Part, Rows

SPARE = 64  # candidates beyond the cut-off, so that a second look is rare
HELD = 1 << 21  # candidates of one block of queries: 25 MB
_SHARE = 128  # queries of a thread at least
_TIED = 1 << 23  # candidates held at once where ties are wide: 200 MB


class Hits(NamedTuple):
    """The best documents of each query, best first: `scores` (Q, depth), and `rows` (Q, depth) in the corpus.

    Where an approximate index found fewer, the rest of the line is -inf and row -1.
    """

    scores: Floats
    rows: Rows


class Candidates(NamedTuple):
    """Documents that may be among the best: float32 scores (Q, K), none further than `slack` (Q,) from the true one.

    K is at most depth + SPARE, and all documents of the part that are among the best of the corpus are there. Places
    that are not used have row -1 and score -inf.
    """

    rough: Floats
    rows: Rows
    slack: Bounds

    def of(self, queries: Rows) -> Candidates:
        """Those of some of the queries."""
        return Candidates(self.rough[queries], self.rows[queries], self.slack[queries])

    def widened(self, width: int) -> Candidates:
        """The same with more places."""
        padding = ((0, 0), (0, width - self.rough.shape[1]))
        rough = np.pad(self.rough, padding, constant_values=-np.inf)
        return Candidates(rough, np.pad(self.rows, padding, constant_values=-1), self.slack)

    @classmethod
    def stacked(cls, blocks: Sequence[Candidates]) -> Candidates:
        """Those of several blocks of queries, one after the other."""
        width = max(block.rough.shape[1] for block in blocks)
        rough, rows, slack = zip(*(block.widened(width) for block in blocks), strict=True)
        return cls(np.concatenate(rough), np.concatenate(rows), np.concatenate(slack))

    def put(self, queries: Rows, hits: Hits) -> None:
        """Replace those of some queries by hits, which are no more."""
        depth = hits.rows.shape[1]
        self.rough[queries], self.rows[queries] = -np.inf, -1
        self.rough[queries, :depth], self.rows[queries, :depth] = hits

    def lowest(self, depth: int) -> Bounds:
        """The float32 score (Q,) below which nothing can be among the first `depth` of the true scores."""
        if self.rough.shape[1] < depth:
            return np.full(len(self.rough), -np.inf)
        place = self.rough.shape[1] - depth
        lowest: Bounds = np.partition(self.rough, place, axis=1)[:, place] - 2 * self.slack
        return lowest


class Workers(Protocol):
    """Who searches the parts of a corpus: this process, or Ray tasks."""

    def nearest(self, queries: Floats, depth: int, ids: Sequence[str]) -> Iterator[Candidates]:
        """The candidates of each part, in any order."""
        ...

    def scores(self, queries: Floats, query: Rows, rows: Rows) -> Floats:
        """The score (P,) of each pair of a query and a document."""
        ...


class Here:
    """This process searches."""

    def __init__(self, part: Part, threads: int) -> None:
        self._part, self._threads = part, threads

    def nearest(self, queries: Floats, depth: int, ids: Sequence[str]) -> Iterator[Candidates]:
        """The candidates of the one part."""
        yield nearest(queries, self._part, depth, ids, self._threads)

    def scores(self, queries: Floats, query: Rows, rows: Rows) -> Floats:
        """The score of each pair."""
        return pair_scores(queries, self._part, query, rows)


def exact(queries: Floats, workers: Workers, depth: int, ids: Sequence[str]) -> Hits:
    """The `depth` best documents of each query; memory holds one block of queries, and its candidates of two parts."""
    hits = Hits(np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int64))
    step = max(1, HELD // max(depth + SPARE, queries.shape[1]))
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        best: Candidates | None = None
        for found in workers.nearest(block, depth, ids):
            best = found if best is None else merged(best, found, depth, block, workers, ids)
        assert best is not None
        settled = _settled(best, depth, block, workers, ids)
        hits.scores[start : start + step], hits.rows[start : start + step] = settled
    return hits


def nearest(queries: Floats, part: Part, depth: int, ids: Sequence[str], threads: int) -> Candidates:
    """The candidates of one part, piece by piece: a document has to pass what the pieces before it have reached.

    Threads share the queries, where these are enough: by itself each is faster than several in one product.
    """
    import faiss

    jobs = max(n for n in range(1, threads + 1) if threads % n == 0 and (n == 1 or n * _SHARE <= len(queries)))
    shares, each = np.array_split(queries, jobs), threads // jobs
    best: list[Candidates | None] = [None] * jobs
    seen = 0

    def further(share: Floats, before: Candidates | None, first: int, documents: Floats, fetch: int) -> Candidates:
        found = _of_piece(share, documents, first, depth, ids, fetch, before)
        return found if before is None else merged(before, found, depth, share, Here(part, each), ids)

    # How many threads faiss uses is asked for by each thread that calls it.
    with multiplied(each), ThreadPoolExecutor(jobs, initializer=faiss.omp_set_num_threads, initargs=(each,)) as pool:
        for first, documents in part.pieces(threads):
            seen += len(documents)
            # Twice its share of the best, were they spread evenly; where that is too few, faiss is asked again.
            fetch = 2 * depth * len(documents) // seen + SPARE
            found = pool.map(partial(further, first=first, documents=documents, fetch=fetch), shares, best)
            best = list(found)
    return Candidates.stacked([share for share in best if share is not None])


def merged(
    left: Candidates, right: Candidates, depth: int, queries: Floats, workers: Workers, ids: Sequence[str]
) -> Candidates:
    """The candidates of two parts together, cut to depth + SPARE places."""
    both = Candidates(
        np.concatenate([left.rough, right.rough], axis=1),
        np.concatenate([left.rows, right.rows], axis=1),
        np.maximum(left.slack, right.slack),
    )
    width = depth + SPARE
    if both.rough.shape[1] <= width:
        return both
    order = np.argpartition(-both.rough, width, axis=1)[:, : width + 1]
    rough, rows = np.take_along_axis(both.rough, order, axis=1), np.take_along_axis(both.rows, order, axis=1)
    kept = Candidates(rough[:, :width], rows[:, :width], both.slack)
    # Where the best that is cut off could still be among the first `depth`, float64 decides now.
    wide = np.flatnonzero(rough[:, width] >= kept.lowest(depth))
    if len(wide):
        kept.put(wide, _settled(both.of(wide), depth, queries[wide], workers, ids))
    return kept


def _of_piece(
    queries: Floats,
    documents: Floats,
    first: int,
    depth: int,
    ids: Sequence[str],
    fetch: int,
    best: Candidates | None,
) -> Candidates:
    """faiss over one piece, asked for `fetch` documents, and again for more where these do not reach down to `best`."""
    import faiss

    slack, most = rounding(queries, documents, first), min(len(documents), depth + SPARE)
    fetch = most if best is None else min(most, fetch)
    rough, rows = faiss.knn(queries, documents, fetch, metric=faiss.METRIC_INNER_PRODUCT)
    found = Candidates(rough, rows + first, slack)
    if fetch == len(documents):
        return found
    lowest = found.lowest(depth)
    if best is not None:
        lowest = np.maximum(lowest, best._replace(slack=np.maximum(slack, best.slack)).lowest(depth))
    short = np.flatnonzero(rough[:, -1] >= lowest)  # the next one could be among the best as well
    if len(short) and fetch < most:
        more = _of_piece(queries[short], documents, first, depth, ids, most, best and best.of(short))
        found = found.widened(most)
        found.rough[short], found.rows[short] = more.rough, more.rows
    elif len(short):
        found.put(short, _among_ties(queries[short], documents, first, depth, ids, slack[short]))
    return found


def _among_ties(queries: Floats, documents: Floats, first: int, depth: int, ids: Sequence[str], slack: Bounds) -> Hits:
    """The exact top `depth` of one piece where more than SPARE others are as good as the last one.

    That is rare (copies of a document, a collapsed encoder): ever more are fetched, until none is left that could be.
    """
    import faiss

    hits = Hits(np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int64))
    pending, fetch, part = np.arange(len(queries)), 8 * (depth + SPARE), Part((documents,), (0,))
    while len(pending):
        fetch, undecided = min(fetch, len(documents)), [pending[:0]]
        for block in np.array_split(pending, -(-len(pending) * fetch // _TIED)):
            rough, rows = faiss.knn(queries[block], documents, fetch, metric=faiss.METRIC_INNER_PRODUCT)
            query = np.repeat(np.arange(len(block)), fetch)
            scores = pair_scores(queries[block], part, query, rows.ravel()).reshape(rough.shape)
            scores, rows = ranked(scores, rows + first, ids)
            hits.scores[block], hits.rows[block] = scores[:, :depth], rows[:, :depth]
            if fetch < len(documents):
                undecided.append(block[rough[:, -1] >= scores[:, depth - 1] - slack[block]])
        pending, fetch = np.concatenate(undecided), 8 * fetch
    return hits


def _settled(found: Candidates, depth: int, queries: Floats, workers: Workers, ids: Sequence[str]) -> Hits:
    """The exact top `depth` of the candidates: those that can be among it are scored again."""
    query, place = np.nonzero((found.rough >= found.lowest(depth)[:, None]) & (found.rows >= 0))
    scores = np.full(found.rough.shape, -np.inf, np.float32)
    scores[query, place] = workers.scores(queries, query, found.rows[query, place])
    scores, rows = ranked(scores, found.rows, ids)
    return Hits(scores[:, :depth], rows[:, :depth])
