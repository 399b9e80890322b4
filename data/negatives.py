"""Where the negatives of a training example come from.

What counts as relevant is what the judgments given here say, and these are the training judgments (its validation part
included). Test judgments are never read in training: a document that only they call relevant may be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
        drawn = np.full((len(query_rows), self.per_query), -1, np.int64)
        return self.fill(query_rows, drawn, rng)

    def fill(self, query_rows: Rows, drawn: Rows, rng: np.random.Generator) -> Rows:
        """Documents in place of every -1 of `drawn` (B, K), distinct from the others of their line."""
        again = drawn < 0
        ours = again.copy()
        # What is relevant or drawn twice is drawn again, which leaves every set as likely as any other.
        while again.any():
            drawn[again] = rng.integers(self._n, size=int(again.sum()))
            again = (self._relevant.mask(query_rows, drawn) & ours) | _repeated(drawn, ours)
        return drawn


@dataclass(frozen=True, eq=False)
class Pool:
    """Documents that one source offers as negatives of each query.

    Args:
        source: what they are, in a word or two, such as "bm25".
        rows: (Q, k) document rows, -1 where there is none; in a ranking, the place of rank r is r - 1.
        weight: how often the source is drawn from, in proportion to the others.
        scores: (Q, k) of each document, where the source gives scores.
        ranked: whether the place of a document says how good the source finds it.
    """

    source: str
    rows: Rows
    weight: float = 1.0
    scores: npt.NDArray[np.float32] | None = None
    ranked: bool = True

    def window(self, skip: int, depth: int) -> Pool:
        """The ranks `skip` + 1 to `depth` of a ranking."""
        ranks = np.arange(self.rows.shape[1])
        return replace(self, rows=np.where((ranks >= skip) & (ranks < depth), self.rows, -1))

    def below(
        self, positives: npt.NDArray[np.float32], absolute: float | None = None, relative: float | None = None
    ) -> Pool:
        """What scores clearly less than a relevant document, and so is hardly relevant itself.

        Args:
            positives: (Q,) the score of each query's relevant document, of several the lowest.
            absolute: a document must score less than that by so much.
            relative: … by such a share of it; 0.05 is the "positive-aware" filter of NV-Retriever (arXiv 2407.15831).
        """
        assert self.scores is not None, "only a source with scores can be filtered by them"
        kept = self.rows >= 0
        if absolute is not None:
            kept &= self.scores <= (positives - absolute)[:, None]
        if relative is not None:
            kept &= self.scores <= (positives - relative * np.abs(positives))[:, None]
        return replace(self, rows=np.where(kept, self.rows, -1))


class PooledNegatives:
    """Documents from pools of each query, such as the top of a ranking, mixed by weight.

    Each negative is of one source, drawn by weight, and there each document of the pool is as likely as any other. A
    document that several sources offer is the first one's. Where a query's pool is empty, random documents fill up.

    Args:
        query_rows: (Q,) the queries that have pools.
        relevant: the training judgments; what is relevant for a query is taken out of its pools.
        random: the weight of random documents.

    Attributes:
        pools: the sources', without what is relevant or an earlier source's.
        short: for each source, how many queries have fewer than `per_query` of its documents.

    Raises UserError if a source has no document for any query, and what `RandomNegatives` raises.
    """

    def __init__(
        self,
        query_rows: Rows,
        pools: Sequence[Pool],
        relevant: Qrels,
        n_documents: int,
        per_query: int,
        random: float = 0.0,
    ) -> None:
        self.per_query, self.query_rows = per_query, query_rows
        self._random = RandomNegatives(n_documents, relevant, per_query)
        self._order = np.argsort(query_rows, kind="stable")
        self._queries = query_rows[self._order]
        weights = np.array([*(pool.weight for pool in pools), random])
        self._weights = weights / weights.sum()
        judged, taken = _Relevant(relevant, n_documents), np.empty(0, np.int64)
        line = np.arange(len(query_rows))[:, None] * n_documents
        self.pools: list[Pool] = []
        self._ready: list[tuple[Rows, Rows]] = []
        self.short: dict[str, int] = {}
        for pool in pools:
            pairs = np.where(pool.rows >= 0, line + pool.rows, -1)
            usable = (pool.rows >= 0) & ~judged.mask(query_rows, pool.rows) & ~np.isin(pairs, taken)
            taken = np.concatenate([taken, pairs[usable]])
            if len(query_rows) and not usable.any():
                raise UserError(
                    f"no query has a document of {pool.source} that is not relevant for it",
                    where="negatives",
                    mend="Use another source: random, for example.",
                )
            self.pools.append(replace(pool, rows=np.where(usable, pool.rows, -1)))
            # For each query its usable documents first.
            first = np.argsort(~usable, axis=1, kind="stable")
            count = usable.sum(axis=1)
            self._ready.append((np.take_along_axis(pool.rows, first, axis=1), count))
            self.short[pool.source] = self.short.get(pool.source, 0) + int((count < per_query).sum())

    def draw(self, query_rows: Rows, rng: np.random.Generator) -> Rows:
        """Document rows (B, K) for query rows (B,). Raises KeyError for a query that has no pools."""
        place = np.minimum(np.searchsorted(self._queries, query_rows), max(len(self._queries) - 1, 0))
        if not len(self._queries) or (self._queries[place] != query_rows).any():
            raise KeyError("negatives are asked for a query that has no pools")
        lines = self._order[place]
        shape = len(lines), self.per_query
        source = rng.choice(len(self._weights), size=shape, p=self._weights)
        drawn = np.full(shape, -1, np.int64)
        for number, (pool, count) in enumerate(self._ready):
            # The documents of the smallest of random keys are a random choice; keys of what is not usable come last.
            keys = rng.random((len(lines), pool.shape[1]))
            keys[np.arange(pool.shape[1]) >= count[lines, None]] = np.inf
            order = np.argsort(keys, axis=1, kind="stable")
            wanted = source == number
            turn = np.cumsum(wanted, axis=1) - 1  # which of the source's documents this one is, in its line
            query, slot = np.nonzero(wanted & (turn < count[lines, None]))
            drawn[query, slot] = pool[lines[query], order[query, turn[query, slot]]]
        return self._random.fill(query_rows, drawn, rng)

    def table(self, query_ids: Callable[[int], str], document_ids: Callable[[int], str]) -> pa.Table:
        """What the pools hold: `query_id`, `doc_id`, `source`, `rank` from 1, `score`; null where it is not known."""
        columns: dict[str, list[Any]] = {name: [] for name in ("query_id", "doc_id", "source", "rank", "score")}
        for pool in self.pools:
            line, place = np.nonzero(pool.rows >= 0)
            columns["query_id"] += map(query_ids, self.query_rows[line].tolist())
            columns["doc_id"] += map(document_ids, pool.rows[line, place].tolist())
            columns["source"] += [pool.source] * len(line)
            columns["rank"] += (place + 1).tolist() if pool.ranked else [None] * len(line)
            columns["score"] += [None] * len(line) if pool.scores is None else pool.scores[line, place].tolist()
        types = {"rank": pa.int32(), "score": pa.float32()}
        return pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})


def judged_nonrelevant(qrels: Qrels, query_rows: Rows) -> Rows:
    """The documents that are judged 0 or below for each query: (Q, k), padded with -1."""
    judged = qrels.select(qrels.relevance <= 0)
    order = np.argsort(judged.query_row, kind="stable")
    query, judgment = matches(judged.query_row[order], query_rows)
    place = np.arange(len(query)) - np.searchsorted(query, query)  # in the line of its query
    pool = np.full((len(query_rows), place.max(initial=-1) + 1), -1, np.int64)
    pool[query, place] = judged.doc_row[order][judgment]
    return pool


def _repeated(drawn: Rows, ours: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of `ours` in (B, K) are in their line already: as another's, or as one of ours further left."""
    # Stable, with the others first: of equal entries, all but the first are repeated.
    order = np.lexsort((ours, drawn), axis=1)
    ordered = np.take_along_axis(drawn, order, axis=1)
    same = np.zeros(drawn.shape, np.bool_)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(same)
    np.put_along_axis(repeated, order, same, axis=1)
    return repeated & ours
