"""Pins of the data order: every example once an epoch (but for the rest that is dropped), the same batch for the same
step whatever was asked before, and parts that make up the whole on any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Batch, BatchPlan, Examples, Qrels, RandomNegatives, UserError

N_DOCUMENTS = 500


def make(n: int, batch_size: int, epochs: int = 3, seed: int = 13, per_query: int = 2) -> BatchPlan:
    """`n` examples: query i, whose one relevant document is n - i."""
    rows = np.arange(n)
    judged = Qrels(rows, n - rows, np.ones(n, np.int32))
    negatives = RandomNegatives(N_DOCUMENTS, judged, per_query)
    return BatchPlan(Examples.of(judged), negatives, batch_size, epochs, seed)


def same(left: Batch, right: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


sizes = st.tuples(st.integers(1, 60), st.integers(1, 20)).filter(lambda pair: pair[0] >= pair[1])


@given(sizes, st.integers(0, 2**31))
def test_every_example_once_an_epoch(pair: tuple[int, int], seed: int) -> None:
    n, batch_size = pair
    plan = make(n, batch_size, epochs=2, seed=seed)
    assert plan.total_steps == 2 * (n // batch_size)
    assert [plan.examples_before(step) for step in range(plan.total_steps + 1)] == [
        batch_size * step for step in range(plan.total_steps + 1)
    ]
    for epoch in range(2):
        batches = [plan.batch(step) for step in range(*plan.first_steps[epoch : epoch + 2])]
        queries = np.concatenate([batch.queries for batch in batches])
        assert len(queries) == len(set(queries.tolist())) == n - n % batch_size
        for batch in batches:
            assert len(batch.queries) == batch_size
            assert np.array_equal(batch.positives, n - batch.queries)
            for positive, negatives in zip(batch.positives, batch.negatives, strict=True):
                assert positive not in negatives
                assert len(set(negatives.tolist())) == 2


@given(sizes, st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_batch_depends_on_its_step_alone(pair: tuple[int, int], steps: list[int]) -> None:
    plan = make(*pair)
    steps = [step % plan.total_steps for step in steps]
    one_by_one = [make(*pair).batch(step) for step in steps]
    in_any_order = [plan.batch(step) for step in steps]
    assert all(same(a, b) for a, b in zip(one_by_one, in_any_order, strict=True))


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 100))
def test_parts_make_up_the_batch(workers: int, share: int, step: int) -> None:
    batch_size = workers * share
    plan = make(50, batch_size)
    whole = plan.batch(step % plan.total_steps)
    parts = [whole.part(rank, workers) for rank in range(workers)]
    assert {len(part.queries) for part in parts} == {share}
    assert same(whole, Batch(*(np.concatenate(column) for column in zip(*parts, strict=True))))


@given(workers=st.integers(1, 5), sizes=st.lists(st.integers(0, 200), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_dealt_parts_are_of_about_one_size(workers: int, sizes: list[int], seed: int) -> None:
    size = np.random.default_rng(seed).permutation(np.repeat(sizes, workers) + np.arange(workers * len(sizes)) % 7)
    rows = np.arange(len(size))
    dealt = Batch(rows, rows + 100, rows[:, None] + [200, 300]).balanced(size, workers)
    assert sorted(dealt.queries.tolist()) == rows.tolist()
    assert (dealt.positives - dealt.queries == 100).all()
    assert (dealt.negatives - dealt.queries[:, None] == [200, 300]).all()
    sums = [size[dealt.part(rank, workers).queries].sum() for rank in range(workers)]
    assert max(sums) - min(sums) <= size.max() - size.min()


def test_dealt_by_hand() -> None:
    rows = np.arange(6)
    dealt = Batch(rows, rows, rows[:, None]).balanced(np.array([1, 9, 4, 8, 2, 5]), 2)
    # By size 1, 3, 5, 2, 4, 0; to and fro, the first gets 1, 2, 4 and the second 3, 5, 0; each in the order that was.
    assert dealt.queries.tolist() == [1, 2, 4, 0, 3, 5]


def test_epochs_and_seeds_differ() -> None:
    plan = make(40, 16)
    left_out = [
        set(range(40)) - {query for step in (2 * epoch, 2 * epoch + 1) for query in plan.batch(step).queries.tolist()}
        for epoch in range(3)
    ]
    assert [len(rows) for rows in left_out] == [8, 8, 8]
    assert len({frozenset(rows) for rows in left_out}) == 3
    assert not same(make(40, 16, seed=1).batch(0), make(40, 16, seed=2).batch(0))
    assert not np.array_equal(plan.batch(0).negatives, plan.batch(1).negatives)


def test_the_order_stays_what_it_is() -> None:
    """Another order for the same seed would make every earlier run impossible to repeat."""
    batch = make(10, 4).batch(3)
    order = np.random.default_rng([13, 1]).permutation(10)
    assert batch.queries.tolist() == order[4:8].tolist()
    assert batch.queries.tolist() == [9, 7, 6, 0]


JUDGED = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=60, unique=True)


@given(pairs=JUDGED, batch_size=st.integers(1, 10), seed=st.integers(0, 2**31))
def test_every_query_once_an_epoch(pairs: list[tuple[int, int]], batch_size: int, seed: int) -> None:
    queries, documents = np.array(pairs, np.int64).T
    distinct = len(set(queries.tolist()))
    judged = Qrels(queries, documents, np.ones(len(pairs), np.int32))
    arguments = Examples.of(judged), RandomNegatives(500, judged, 1), batch_size, 3, seed
    if batch_size > distinct:
        with pytest.raises(UserError, match=f"a batch of {batch_size} is more than the {distinct} training examples"):
            BatchPlan(*arguments, once_a_query=True)
        return
    plan = BatchPlan(*arguments, once_a_query=True)
    assert plan.total_steps == 3 * (distinct // batch_size)
    for epoch in range(3):
        batches = [plan.batch(step) for step in range(*plan.first_steps[epoch : epoch + 2])]
        found = np.concatenate([batch.queries for batch in batches])
        assert len(found) == len(set(found.tolist())) == distinct - distinct % batch_size
        positives = np.concatenate([batch.positives for batch in batches])
        assert {*zip(found.tolist(), positives.tolist(), strict=True)} <= {*pairs}


def test_the_positives_of_a_query_are_drawn_anew_each_epoch() -> None:
    judged = Qrels(np.repeat(np.arange(20), 5), np.arange(100), np.ones(100, np.int32))
    plan = BatchPlan(Examples.of(judged), RandomNegatives(500, judged, 1), 20, 200, 0, once_a_query=True)
    drawn = np.array([np.sort(plan.batch(step).positives) - 5 * np.arange(20) for step in range(200)])
    shares = np.bincount(drawn.ravel(), minlength=5) / drawn.size
    assert np.abs(shares - 0.2).max() < 0.03  # six standard deviations
    assert len({tuple(line) for line in drawn.tolist()}) == 200


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    size=st.integers(1, 200),
    workers=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_batches_of_so_many_tokens(lengths: list[int], size: int, workers: int, seed: int) -> None:
    n, tokens = len(lengths), np.array(lengths)
    judged = Qrels(np.arange(n), np.arange(n), np.ones(n, np.int32))
    arguments = Examples.of(judged), RandomNegatives(500, judged, 1), size, 2, seed
    try:
        plan = BatchPlan(*arguments, tokens=tokens, workers=workers)
    except UserError as error:
        assert "tokens is more than the" in str(error)  # noqa: PT017
        assert sum(sorted(lengths)[: n - n % workers]) < size or n < workers
        return
    before = 0
    for epoch in range(2):
        order = np.random.default_rng([seed, epoch]).permutation(n)
        steps, place = range(*plan.first_steps[epoch : epoch + 2]), 0
        assert len(steps) > 0
        for step in steps:
            queries = plan.batch(step).queries
            # The next examples in the order: as many as fit, and at least one for each worker.
            assert queries.tolist() == order[place : place + len(queries)].tolist()
            assert len(queries) % workers == 0
            assert tokens[queries].sum() <= size or len(queries) == workers
            following = order[place : place + len(queries) + workers]
            assert tokens[following].sum() > size or len(following) < len(queries) + workers or step == steps[-1]
            assert plan.examples_before(step) == before + place
            place += len(queries)
        before += place
        rest = order[place : n - n % workers]
        assert tokens[rest].sum() <= size  # what is left fills no batch
    assert plan.examples_before(plan.total_steps) == before


def test_no_negatives() -> None:
    assert make(10, 4, per_query=0).batch(0).negatives.shape == (4, 0)


def test_refuses() -> None:
    with pytest.raises(UserError) as error:
        make(10, 11)
    assert str(error.value) == (
        "training.batch_size: a batch of 11 is more than the 10 training examples. Lower it to 10 or less."
    )
    with pytest.raises(UserError) as error:
        make(10, 5).batch(0).part(0, 2)
    assert str(error.value) == (
        "training.batch_size, scaling.workers: a batch of 5 cannot be shared equally by 2 workers. "
        "Make the batch size a multiple of the workers."
    )
    with pytest.raises(UserError, match="cannot be shared equally"):
        make(10, 5).batch(0).balanced(np.arange(5), 2)
    judged = Qrels(np.array([0]), np.array([0]), np.array([0], np.int32))
    with pytest.raises(UserError, match="no training judgment is above 0"):
        Examples.of(judged)
    plan = make(10, 4)
    for step in (-1, plan.total_steps):
        with pytest.raises(IndexError):
            plan.batch(step)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40, unique=True),
    queries=st.lists(st.integers(0, 12), max_size=12),
    documents=st.lists(st.integers(0, 12), max_size=20),
)
def test_relevant_equals_the_loop(pairs: list[tuple[int, int]], queries: list[int], documents: list[int]) -> None:
    examples = Examples(*np.array(pairs, np.int64).T)
    mask = examples.relevant(np.array(queries, np.int64), np.array(documents, np.int64))
    assert mask.tolist() == [[(q, d) in pairs for d in documents] for q in queries]


def test_what_else_is_relevant_in_a_batch_by_hand() -> None:
    # Query 0 has documents 0 and 1, query 1 document 0, query 2 document 2; what is judged 0 is not relevant.
    judged = Qrels(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 0, 2, 0]), np.array([1, 2, 1, 1, 0], np.int32))
    plan = BatchPlan(Examples.of(judged), RandomNegatives(4, judged, 1), 4, 1, 0)
    batch = Batch(np.array([0, 1, 2, 0]), np.array([0, 0, 2, 1]), np.array([[3], [1], [0], [2]]))
    assert plan.relevant(batch).astype(int).tolist() == [
        [0, 1, 0, 1, 0, 1, 1, 0],  # the same document for query 1, its own other one, and both as others' negatives
        [1, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 1, 1, 0],
    ]
