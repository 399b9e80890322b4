"""Pins: negatives are distinct, never judged relevant, drawn evenly, and refused where there are not enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import PooledNegatives, Qrels, RandomNegatives, UserError
from data import given as given_negatives

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


@given(st.lists(st.sampled_from([0, 5]), max_size=12), st.integers(0, 3), st.integers(0, 2**31))
def test_ranked(queries: list[int], k: int, seed: int) -> None:
    drawn = PooledNegatives(QUERIES, RANKED, JUDGED, k).draw(np.array(queries, np.int64), np.random.default_rng(seed))
    assert (drawn.shape, drawn.dtype) == ((len(queries), k), np.int64)
    for query, row in zip(queries, drawn.tolist(), strict=True):
        assert len(set(row)) == k
        assert set(row) <= USABLE[query]


def test_ranked_is_even() -> None:
    source = PooledNegatives(QUERIES, RANKED, JUDGED, 2)
    drawn = source.draw(np.full(9_000, 5), np.random.default_rng(3))
    for column in drawn.T:
        documents, counts = np.unique(column, return_counts=True)
        assert documents.tolist() == [2, 4, 9]
        assert np.abs(counts - 3_000).max() < 5 * np.sqrt(9_000 / 3 * 2 / 3)


def test_ranked_refuses_too_many_and_unknown_queries() -> None:
    with pytest.raises(UserError) as error:
        PooledNegatives(np.array([0, 5]), np.array([[1, 3, 4], [3, 4, 2]]), JUDGED, 3)
    assert str(error.value) == (
        "negatives.per_query: 1 of 2 queries have fewer than 3 ranked documents that are not relevant for them. "
        "Lower it to 2, or use source: random."
    )
    source = PooledNegatives(QUERIES, RANKED, JUDGED, 1)
    for unknown in (3, 6):
        with pytest.raises(KeyError):
            source.draw(np.array([0, unknown]), np.random.default_rng(0))


def test_given_are_what_is_judged_not_relevant() -> None:
    judged = Qrels(np.array([0, 3, 0, 3, 0, 1]), np.array([1, 8, 3, 9, 5, 7]), np.array([1, 0, 0, 2, -1, 1], np.int32))
    assert given_negatives(judged, np.array([3, 0, 1])).tolist() == [[8, -1], [3, 5], [-1, -1]]
    assert given_negatives(judged, np.array([1])).shape == (1, 0)
    source = PooledNegatives(np.array([3, 0]), given_negatives(judged, np.array([3, 0])), judged, 1, "given")
    drawn = source.draw(np.array([0, 3] * 50), np.random.default_rng(0))
    assert {int(document) for document in drawn[::2, 0]} == {3, 5}
    assert {int(document) for document in drawn[1::2, 0]} == {8}


def test_given_refuses_where_there_are_none() -> None:
    judged = Qrels(np.array([0, 1]), np.array([1, 7]), np.array([1, 1], np.int32))
    with pytest.raises(UserError) as error:
        PooledNegatives(np.array([0, 1]), given_negatives(judged, np.array([0, 1])), judged, 1, "given")
    assert str(error.value) == (
        "negatives.per_query: 2 of 2 queries have fewer than 1 given documents that are not relevant for them. "
        "Use another source: random, for example."
    )
