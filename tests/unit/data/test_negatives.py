"""Pins: negatives are distinct, never judged relevant, drawn evenly and by weight, filled up where too few."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Pool, PooledNegatives, Qrels, RandomNegatives, UserError, judged_nonrelevant

# Query 0: 1 and 2 are relevant, 3 is judged not to be. Query 5: 0 is relevant.
JUDGED = Qrels(np.array([0, 0, 0, 5]), np.array([1, 2, 3, 0]), np.array([1, 2, 0, 1], np.int32))
RELEVANT = {0: {1, 2}, 5: {0}}


@given(st.lists(st.sampled_from([0, 3, 5]), max_size=12), st.integers(0, 4), st.integers(0, 2**31))
def test_random(queries: list[int], k: int, seed: int) -> None:
    source = RandomNegatives(6, JUDGED, k)
    drawn = source.draw(np.array(queries, np.int64), np.random.default_rng(seed))
    assert (drawn.shape, drawn.dtype) == ((len(queries), k), np.int64)
    for query, row in zip(queries, drawn.tolist(), strict=True):
        assert len(set(row)) == k
        assert set(row) <= set(range(6)) - RELEVANT.get(query, set())


def test_random_is_even() -> None:
    drawn = RandomNegatives(6, JUDGED, 2).draw(np.zeros(12_000, np.int64), np.random.default_rng(3))
    for column in drawn.T:  # 0, 3, 4 and 5 remain for query 0, each in a quarter of the draws
        documents, counts = np.unique(column, return_counts=True)
        assert documents.tolist() == [0, 3, 4, 5]
        assert np.abs(counts - 3_000).max() < 5 * np.sqrt(12_000 * 0.25 * 0.75)


def test_random_refuses_too_many() -> None:
    RandomNegatives(6, JUDGED, 4)
    with pytest.raises(UserError) as error:
        RandomNegatives(6, JUDGED, 5)
    assert str(error.value) == (
        "negatives.per_query: 5 negatives a query are asked for, but a query has only 4 documents that are not "
        "relevant for it. Lower it to 4 or less."
    )


QUERIES = np.array([5, 0])
RANKED = np.array([[0, 4, 2, 9, -1], [1, 7, 3, 2, 8]])
USABLE = {5: {4, 2, 9}, 0: {7, 3, 8}}
OTHER = np.array([[5, 4, -1], [-1, -1, -1]])  # 4 is the first source's


def pooled(k: int, *pools: Pool, random: float = 0.0) -> PooledNegatives:
    return PooledNegatives(QUERIES, pools or [Pool("bm25", RANKED)], JUDGED, 10, k, random)


@given(st.lists(st.sampled_from([0, 5]), max_size=12), st.integers(0, 3), st.integers(0, 2**31))
def test_ranked(queries: list[int], k: int, seed: int) -> None:
    drawn = pooled(k).draw(np.array(queries, np.int64), np.random.default_rng(seed))
    assert (drawn.shape, drawn.dtype) == ((len(queries), k), np.int64)
    for query, row in zip(queries, drawn.tolist(), strict=True):
        assert len(set(row)) == k
        assert set(row) <= USABLE[query]


def test_ranked_is_even() -> None:
    drawn = pooled(2).draw(np.full(9_000, 5), np.random.default_rng(3))
    for column in drawn.T:
        documents, counts = np.unique(column, return_counts=True)
        assert documents.tolist() == [2, 4, 9]
        assert np.abs(counts - 3_000).max() < 5 * np.sqrt(9_000 / 3 * 2 / 3)


@given(st.integers(0, 8), st.integers(0, 2**31))
def test_mixed(k: int, seed: int) -> None:
    source = pooled(k, Pool("bm25", RANKED), Pool("mined", OTHER, 2.0), random=1.0)
    drawn = source.draw(np.array([0, 5, 5, 0]), np.random.default_rng(seed))
    for query, row in zip([0, 5, 5, 0], drawn.tolist(), strict=True):
        assert len(set(row)) == k
        assert set(row) <= set(range(10)) - RELEVANT[query]


def test_mixed_by_weight() -> None:
    """Query 5: 4, 2 and 9 are of bm25, 5 alone is mined, and random documents may be any that is not relevant."""
    source = pooled(1, Pool("bm25", RANKED, 3.0), Pool("mined", OTHER, 2.0), random=5.0)
    drawn = source.draw(np.full(20_000, 5), np.random.default_rng(3))[:, 0]
    share = np.bincount(drawn, minlength=10) / len(drawn)
    expected = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 1]) * 0.5 / 9  # 0 is relevant for it
    expected[[4, 2, 9]] += 0.3 / 3
    expected[5] += 0.2
    assert np.abs(share - expected).max() < 0.015


def test_random_documents_fill_up() -> None:
    source = pooled(5)
    assert source.short == {"bm25": 2}
    drawn = source.draw(np.full(3_000, 5), np.random.default_rng(3))
    for row in drawn.tolist():
        assert len(set(row)) == 5
        assert USABLE[5] <= set(row) <= set(range(1, 10))
    documents, counts = np.unique(drawn, return_counts=True)
    others = counts[~np.isin(documents, list(USABLE[5]))]  # 2 of the 6 others each time
    assert np.abs(others - 1_000).max() < 5 * np.sqrt(3_000 / 3 * 2 / 3)


def test_refusals() -> None:
    with pytest.raises(UserError) as error:
        pooled(1, Pool("bm25", RANKED), Pool("mined", np.full((2, 3), -1)))
    assert str(error.value) == (
        "negatives: no query has a document of mined that is not relevant for it. "
        "Use another source: random, for example."
    )
    with pytest.raises(UserError, match=r"^negatives.per_query: 9 .* only 8 documents"):
        pooled(9)
    for unknown in (3, 6):
        with pytest.raises(KeyError):
            pooled(1).draw(np.array([0, unknown]), np.random.default_rng(0))


def test_given_are_what_is_judged_not_relevant() -> None:
    judged = Qrels(np.array([0, 3, 0, 3, 0, 1]), np.array([1, 8, 3, 9, 5, 7]), np.array([1, 0, 0, 2, -1, 1], np.int32))
    assert judged_nonrelevant(judged, np.array([3, 0, 1])).tolist() == [[8, -1], [3, 5], [-1, -1]]
    assert judged_nonrelevant(judged, np.array([1])).shape == (1, 0)
    rows = np.array([3, 0])
    source = PooledNegatives(rows, [Pool("given", judged_nonrelevant(judged, rows))], judged, 10, 1)
    drawn = source.draw(np.array([0, 3] * 50), np.random.default_rng(0))
    assert {int(document) for document in drawn[::2, 0]} == {3, 5}
    assert {int(document) for document in drawn[1::2, 0]} == {8}


def test_window_and_margins_by_hand() -> None:
    rows = np.array([[7, 3, 9, 4], [1, 2, 3, -1]])
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [-0.1, -0.2, -0.3, -np.inf]], np.float32)
    pool, positives = Pool("mined", rows, 1.0, scores), np.array([0.8, -0.2], np.float32)
    assert pool.window(1, 3).rows.tolist() == [[-1, 3, 9, -1], [-1, 2, 3, -1]]
    assert pool.below(positives).rows.tolist() == rows.tolist()
    assert pool.below(positives, absolute=0.0).rows.tolist() == [[-1, 3, 9, 4], [-1, 2, 3, -1]]
    assert pool.below(positives, absolute=0.15).rows.tolist() == [[-1, -1, -1, 4], [-1, -1, -1, -1]]
    # 0.8 - 10 % = 0.72; of a negative score, 10 % more below it: -0.22
    assert pool.below(positives, relative=0.1).rows.tolist() == [[-1, -1, 9, 4], [-1, -1, 3, -1]]
    assert pool.below(positives, absolute=0.05, relative=0.2).rows.tolist() == [[-1, -1, -1, 4], [-1, -1, 3, -1]]


def test_table_tells_where_each_comes_from() -> None:
    scores = np.array([[0.5, 0.25, 0.0], [0.0, 0.0, 0.0]], np.float32)
    given_pool = Pool("given", np.array([[-1, 6], [-1, -1]]), ranked=False)
    source = pooled(1, Pool("bm25", RANKED), Pool("mined", OTHER, 1.0, scores), given_pool)
    assert source.table("q{}".format, "d{}".format).to_pylist() == [
        {"query_id": query, "doc_id": document, "source": kind, "rank": rank, "score": score}
        for query, document, kind, rank, score in [
            ("q5", "d4", "bm25", 2, None),
            ("q5", "d2", "bm25", 3, None),
            ("q5", "d9", "bm25", 4, None),
            ("q0", "d7", "bm25", 2, None),
            ("q0", "d3", "bm25", 3, None),
            ("q0", "d8", "bm25", 5, None),
            ("q5", "d5", "mined", 1, 0.5),
            ("q5", "d6", "given", None, None),
        ]
    ]
