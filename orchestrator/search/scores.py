"""Scores that are the same wherever a document lies, the order that they give, and how far faiss's are from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from orchestrator.search.vectors import Floats, Part, Rows, opened

Bounds = NDArray[np.float64]

_PAIRS = 128  # pairs scored at once: at 512 it takes four times as long, since their arrays no longer stay in the cache
_JOB = 64 * _PAIRS  # pairs that a thread takes at once
_TINY = float(np.finfo(np.float32).tiny)  # what a product that underflows may lose


def pair_scores(queries: Floats, part: Part, query: Rows, rows: Rows, threads: int) -> Floats:
    """The inner product (P,) of each pair of a query and a row of the corpus: in float64, rounded once to float32.

    Of one shard, pairs are taken by query, which is then read once; of several, by document, so that each shard is
    opened by itself.
    """
    several = len(part.shards) > 1
    order = np.argsort(rows if several else query, kind="stable")
    query, rows, wide = query[order], rows[order], queries.astype(np.float64)
    scores = np.empty(len(rows), np.float32)

    def score(shard: int, begin: int, end: int) -> None:
        vectors, start = opened(part.shards[shard]), part.starts[shard]
        for i, j in _cuts(begin, end, query[begin:end] if not several else None):
            documents = vectors[rows[i:j] - start].astype(np.float64)
            scores[i:j] = np.vecdot(documents, wide[query[i:j] if several else query[i]])

    ends = [*(np.searchsorted(rows, part.starts[1:]) if several else ()), len(rows)]
    jobs = [
        (shard, begin, min(begin + _JOB, end))
        for shard, (start, end) in enumerate(itertools.pairwise([0, *map(int, ends)]))
        for begin in range(start, end, _JOB)
    ]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: score(*job), jobs))
    found = np.empty_like(scores)
    found[order] = scores
    return found


def _cuts(begin: int, end: int, query: Rows | None) -> Iterator[tuple[int, int]]:
    """Where to cut pairs begin to end: each run has at most _PAIRS, and one query where these are given."""
    changes = [] if query is None else (begin + 1 + np.flatnonzero(np.diff(query))).tolist()
    for start, stop in itertools.pairwise([begin, *changes, end]):
        for i in range(start, stop, _PAIRS):
            yield i, min(i + _PAIRS, stop)


def ranked(scores: Floats, rows: Rows, ids: Sequence[str]) -> tuple[Floats, Rows]:
    """Each line of scores and rows (Q, K) by score, then by document id, both descending; row -1 comes last."""
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    same = (scores[:, 1:] == scores[:, :-1]) & (rows[:, 1:] >= 0)
    lines = np.flatnonzero(same.any(axis=1))
    if len(lines):
        tied = np.zeros((len(lines), rows.shape[1]), bool)
        tied[:, 1:] |= same[lines]
        tied[:, :-1] |= same[lines]
        among, which = np.unique(rows[lines][tied], return_inverse=True)
        names = [ids[row] for row in among.tolist()]
        place = np.empty(len(names), np.int64)
        place[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        rank = np.zeros(tied.shape, np.int64)
        rank[tied] = place[which]
        rows[lines] = np.take_along_axis(rows[lines], np.lexsort((-rank, -scores[lines]), axis=1), axis=1)
    return scores, rows


def rounding(queries: Floats, documents: Floats, first: int) -> Bounds:
    """How far a float32 inner product can be from the true one, per query (Q,): (D + 2) u |q| max|d| with u = 2^-24.

    Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; it holds for every order of summation.
    Raises UserError where a vector is not finite; `first` is the row of the first document.
    """
    dimension = queries.shape[1]
    longest = _squares("document", documents, first).max()
    lengths = np.sqrt(_squares("query", queries, 0) * longest)
    bound: Bounds = (dimension + 2) * 2.0**-24 * lengths + dimension * _TINY
    return bound


def _squares(name: str, vectors: Floats, first: int) -> Bounds:
    """Squared lengths (N,), never too small."""
    import faiss

    dimension, rough = vectors.shape[1], np.empty(len(vectors), np.float32)
    lengths = faiss.fvec_norms_L2sqr  # type: ignore[attr-defined]
    lengths(faiss.swig_ptr(rough), faiss.swig_ptr(vectors), dimension, len(vectors))
    squares: Bounds = rough * (1 + (dimension + 2) * 2.0**-23) + dimension * _TINY
    for row in np.flatnonzero(~np.isfinite(squares)):  # too long for float32, or not a number
        squares[row] = np.square(vectors[row].astype(np.float64)).sum()
        if not np.isfinite(squares[row]):
            raise UserError(
                f"the embedding of {name} {first + int(row)} is not finite",
                mend="Training has diverged: lower training.learning_rate.",
            )
    return squares
