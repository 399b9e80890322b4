"""Where the negatives of a training example come from.

What counts as relevant is what the judgments given here say, and these are the training judgments (its validation part
included). Test judgments are never read in training: a document that only they call relevant may be drawn.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from data.collection import Qrels, Rows, matches
from data.errors import UserError


class NegativeSource(Protocol):
    """Draws `per_query` (K) distinct documents for each query, none of them judged relevant for it."""

    per_query: int

    def draw(self, query_rows: Rows, rng: np.random.Generator) -> Rows:
        """Document rows (B, K) for query rows (B,); the same for the same state of `rng`."""
        ...


class _Relevant:
    """Asks many (query, document) pairs at once whether they are judged relevant."""

    def __init__(self, relevant: Qrels, n_documents: int) -> None:
        judged = relevant.relevant
        self._n = n_documents
        self._pairs = np.unique(judged.query_row * n_documents + judged.doc_row)

    def mask(self, query_rows: Rows, doc_rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of the documents (B, K) are relevant for their queries (B,)."""
        if not len(self._pairs):
            return np.zeros(doc_rows.shape, np.bool_)
        pairs = query_rows[:, None] * self._n + doc_rows
        place = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        found: npt.NDArray[np.bool_] = self._pairs[place] == pairs
        return found

    def most(self) -> int:
        """The largest number of relevant documents of any query."""
        return int(np.unique(self._pairs // self._n, return_counts=True)[1].max(initial=0))


class RandomNegatives:
    """Documents from the whole corpus, each as likely as any other.

    Raises UserError if some query has fewer than `per_query` documents that are not relevant for it.
    """

    def __init__(self, n_documents: int, relevant: Qrels, per_query: int) -> None:
        self.per_query = per_query
        self._n, self._relevant = n_documents, _Relevant(relevant, n_documents)
        if (fewest := n_documents - self._relevant.most()) < per_query:
            raise UserError(
                f"{per_query:,} negatives a query are asked for, but a query has only {fewest:,} documents that are "
                "not relevant for it",
                where="negatives.per_query",
                mend=f"Lower it to {fewest:,} or less.",
            )

    def draw(self, query_rows: Rows, rng: np.random.Generator) -> Rows:
        """Document rows (B, K) for query rows (B,)."""
        drawn = rng.integers(self._n, size=(len(query_rows), self.per_query))
        # What is relevant or drawn twice is drawn again, which leaves every set of K as likely as any other.
        while (again := self._relevant.mask(query_rows, drawn) | _repeated(drawn)).any():
            drawn[again] = rng.integers(self._n, size=int(again.sum()))
        return drawn


class PooledNegatives:
    """Documents from a pool of each query, such as the top of a BM25 ranking, each as likely as any other of it.

    Args:
        query_rows: (Q,) the queries that have a pool.
        pool: (Q, k) their document rows, padded with -1.
        relevant: the training judgments.
        kind: what the documents of the pool are, in a word, for the message.
    Raises UserError if some query has fewer than `per_query` documents in its pool that are not relevant for it.
    """

    def __init__(self, query_rows: Rows, pool: Rows, relevant: Qrels, per_query: int, kind: str = "ranked") -> None:
        self.per_query = per_query
        n_documents = max(int(pool.max(initial=0)), int(relevant.doc_row.max(initial=0))) + 1
        usable = (pool >= 0) & ~_Relevant(relevant, n_documents).mask(query_rows, pool)
        # For each query its usable documents first, in the order of their ranks.
        self._pool = np.take_along_axis(pool, np.argsort(~usable, axis=1, kind="stable"), axis=1)
        self._count = usable.sum(axis=1)
        self._order = np.argsort(query_rows, kind="stable")
        self._queries = query_rows[self._order]
        if (short := self._count < per_query).any():
            raise UserError(
                f"{int(short.sum()):,} of {len(query_rows):,} queries have fewer than {per_query:,} {kind} documents "
                "that are not relevant for them",
                where="negatives.per_query",
                mend=f"Lower it to {fewest:,}, or use source: random."
                if (fewest := int(self._count.min()))
                else "Use another source: random, for example.",
            )

    def draw(self, query_rows: Rows, rng: np.random.Generator) -> Rows:
        """Document rows (B, K) for query rows (B,). Raises KeyError for a query that was not ranked."""
        place = np.minimum(np.searchsorted(self._queries, query_rows), max(len(self._queries) - 1, 0))
        if not len(self._queries) or (self._queries[place] != query_rows).any():
            raise KeyError("negatives are asked for a query that was not ranked")
        rows = self._order[place]
        # The K smallest of random keys are a random choice of K; keys of what is not usable come last.
        keys = rng.random((len(rows), self._pool.shape[1]))
        keys[np.arange(self._pool.shape[1]) >= self._count[rows, None]] = np.inf
        chosen = np.argsort(keys, axis=1, kind="stable")[:, : self.per_query]
        return np.take_along_axis(self._pool[rows], chosen, axis=1)


def given(qrels: Qrels, query_rows: Rows) -> Rows:
    """The documents that are judged 0 or below for each query: (Q, k), padded with -1."""
    judged = qrels.select(qrels.relevance <= 0)
    order = np.argsort(judged.query_row, kind="stable")
    query, judgment = matches(judged.query_row[order], query_rows)
    place = np.arange(len(query)) - np.searchsorted(query, query)  # in the line of its query
    pool = np.full((len(query_rows), place.max(initial=-1) + 1), -1, np.int64)
    pool[query, place] = judged.doc_row[order][judgment]
    return pool


def _repeated(drawn: Rows) -> npt.NDArray[np.bool_]:
    """Which entries of (B, K) stand further left in their row as well."""
    order = np.argsort(drawn, axis=1, kind="stable")
    ordered = np.take_along_axis(drawn, order, axis=1)
    same = np.zeros(drawn.shape, np.bool_)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(same)
    np.put_along_axis(repeated, order, same, axis=1)
    return repeated
