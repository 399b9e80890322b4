"""Pins: the validation part is disjoint, complete and repeatable; the pool takes relevant, then hard, then random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Qrels, UserError, split_validation, validation_pool


def qrels(*judgments: tuple[int, int, int]) -> Qrels:
    query, doc, relevance = zip(*judgments, strict=True)
    return Qrels(np.array(query, np.int64), np.array(doc, np.int64), np.array(relevance, np.int32))


def pairs(part: Qrels) -> list[tuple[int, int, int]]:
    return list(zip(part.query_row.tolist(), part.doc_row.tolist(), part.relevance.tolist(), strict=True))


judgments = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 50), st.integers(0, 2)), unique_by=lambda j: j[:2], min_size=1
)


@given(judgments, st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_split_is_disjoint_complete_and_repeatable(
    judged: list[tuple[int, int, int]], fraction: float, seed: int
) -> None:
    whole = qrels(*judged)
    positive = {query for query, _, relevance in judged if relevance > 0}
    if len(positive) < 2:
        with pytest.raises(UserError, match="too few for a validation part"):
            split_validation(whole, fraction, seed)
        return
    train, validation = split_validation(whole, fraction, seed)
    assert sorted(pairs(train) + pairs(validation)) == sorted(judged)
    chosen = set(validation.query_row.tolist())
    assert not chosen & set(train.query_row.tolist())
    assert chosen <= positive
    assert len(chosen) == min(max(round(fraction * len(positive)), 1), len(positive) - 1)
    again = split_validation(whole, fraction, seed)
    assert (pairs(again[0]), pairs(again[1])) == (pairs(train), pairs(validation))


def test_split_depends_on_the_seed() -> None:
    whole = qrels(*((query, query, 1) for query in range(100)))
    chosen = [tuple(split_validation(whole, 0.1, seed)[1].query_row) for seed in range(5)]
    assert [len(rows) for rows in chosen] == [10] * 5
    assert len(set(chosen)) == 5


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_fractions(fraction: float) -> None:
    with pytest.raises(UserError, match=r"^collection\.validation: .* is not between 0 and 1"):
        split_validation(qrels((0, 0, 1), (1, 1, 1)), fraction, 0)


# Relevant: documents 7 and 3. The others by rank: 9 (7 is in already), then 12 and 8, then 11 (9 is in already).
VALIDATION = qrels((0, 7, 1), (1, 3, 2), (1, 5, 0))
RANKED = np.array([[9, 12, 11, 3], [7, 8, 9, -1]])


POOLS = {2: [], 3: [9], 4: [9, 12], 5: [9, 12, 8], 6: [9, 12, 8, 11]}


@pytest.mark.parametrize(
    ("size", "expected"),
    [*((size, sorted([3, 7, *hard])) for size, hard in POOLS.items()), (20, list(range(20))), (None, list(range(20)))],
)
def test_pool(size: int | None, expected: list[int]) -> None:
    assert validation_pool(20, VALIDATION, size, RANKED, seed=1).tolist() == expected


def test_pool_is_filled_at_random() -> None:
    pools = [validation_pool(20, VALIDATION, 10, RANKED, seed).tolist() for seed in range(5)]
    for pool in pools:
        assert len(pool) == 10
        assert pool == sorted(set(pool))
        assert {3, 7, 8, 9, 11, 12} <= set(pool) <= set(range(20))
    assert len({tuple(pool) for pool in pools}) == 5
    assert validation_pool(20, VALIDATION, 10, RANKED, 0).tolist() == pools[0]
    assert {3, 7} < set(validation_pool(20, VALIDATION, 5, None, 0).tolist())


def test_pool_refuses_what_is_too_small() -> None:
    with pytest.raises(UserError) as error:
        validation_pool(20, VALIDATION, 1, RANKED, 0)
    assert str(error.value) == (
        "a validation pool of 1 documents cannot hold the 2 relevant ones. Make it 2 at least, or search all documents."
    )
