"""Validation, pinned: nDCG@10 equals the formula written out over every document of the pool, ties by id; documents
outside the pool and the order of the pool's rows play no part; what was encoded is counted; no score of NaN vectors.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import Memory
from tiny_training import DOCUMENT_LENGTHS, QUERY_LENGTHS, encoder, tokens, validator

from data import Qrels
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding
from orchestrator.group import Group
from orchestrator.training import Tokens
from orchestrator.validation import Validator


def by_hand(trained: BiEncoder, qrels: Qrels, pool: list[int]) -> float:
    """DCG with linear gain, as trec_eval has it, over the ideal one, query by query."""
    rows, values = tokens(), []

    def vector(ids: np.ndarray) -> torch.Tensor:
        states = trained.backbone(input_ids=torch.tensor(ids[None], dtype=torch.int64)).last_hidden_state[0]
        return states.mean(0) / states.mean(0).norm()

    with torch.no_grad():
        documents = {row: vector(rows.documents.take([row])[0]) for row in pool}
        for query in sorted(set(qrels.query_row.tolist())):
            q = vector(rows.queries.take([query])[0])
            ranked = sorted(pool, key=lambda row: (float(q @ documents[row]), str(row)), reverse=True)[:10]
            judged = {
                d: r for i, d, r in zip(qrels.query_row, qrels.doc_row, qrels.relevance, strict=True) if i == query
            }
            dcg = sum(judged.get(row, 0) / math.log2(rank + 2) for rank, row in enumerate(ranked))
            ideal = sorted((int(r) for r in judged.values()), reverse=True)
            best = sum(r / math.log2(rank + 2) for rank, r in enumerate(ideal))
            values.append(dcg / best if best else 0.0)
    return sum(values) / len(values)


def test_equals_the_formula() -> None:
    trained, chosen = encoder(), validator()
    expected = by_hand(trained, chosen.qrels, chosen.pool.tolist())
    assert 0.1 < expected < 0.9
    assert chosen(trained, Group()).score == pytest.approx(expected, abs=1e-6)


def test_a_smaller_pool_is_another_task() -> None:
    trained, chosen = encoder(), validator()
    pool = np.array([1, 2, 3, 5, 7, 8, 9])
    smaller = Validator(chosen.tokens, chosen.qrels, pool, chosen.encoding)
    score = smaller(trained, Group()).score
    assert score == pytest.approx(by_hand(trained, chosen.qrels, pool.tolist()), abs=1e-6)
    assert score > chosen(trained, Group()).score


def test_what_was_encoded_is_counted_and_the_mode_is_left_as_it_was() -> None:
    trained = encoder(dropout=0.5).train()
    first, second = validator()(trained, Group()), validator()(trained, Group())
    assert first == second, "no dropout"
    assert trained.training
    assert first.encoded.tokens == sum(QUERY_LENGTHS[:6]) + sum(DOCUMENT_LENGTHS[1:13])
    assert first.encoded.padded >= first.encoded.tokens
    assert first.encoded.flops > 0


def test_vectors_that_are_not_finite_have_no_score() -> None:
    diverged = encoder()
    with torch.no_grad():
        next(diverged.backbone.parameters()).fill_(math.nan)
    assert math.isnan(validator()(diverged, Group()).score)


def test_ties_go_to_the_larger_id() -> None:
    # Copies of one document: their ids alone rank them, "9" first and "10" between "2" and "1", the ninth.
    rows = tokens()
    copies = Memory([rows.documents.take([0])[0]] * 11)
    encoding = Encoding(torch.device("cpu"), "fp32", 16, 0)
    for row, value in ((9, 1.0), (8, 1 / math.log2(3)), (10, 1 / math.log2(10)), (0, 0.0)):
        qrels = Qrels(np.array([0]), np.array([row]), np.array([1], np.int32))
        judged = Validator(Tokens(rows.queries, copies), qrels, np.arange(11), encoding)  # type: ignore[arg-type]
        assert judged(encoder(), Group()).score == pytest.approx(value)
