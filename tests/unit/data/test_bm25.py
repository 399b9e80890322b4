"""Pins: the ranks are those of a naive loop over Lucene's BM25; ties by row; only what shares a term is ranked."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data import Store, rank
from data.collection import Collection, collection

K1, B = 1.5, 0.75
DOCUMENTS = [
    "copper stills take sulphur out of copper spirit",
    "oak casks give colour",
    "copper copper copper",
    "barley malt",
    "",
    "oak casks give colour",
    "sugar becomes alcohol when yeast eats sugar and more sugar still and then stops",
    "spirit of copper and oak, oak, oak",
]
QUERIES = ["copper spirit", "oak", "the of", "unheard words", "", "sugar sugar oak", "Copper, STILLS!"]


def make(documents: list[str], queries: list[str]) -> Collection:
    return collection(
        pa.table({"doc_id": [f"d{row}" for row in range(len(documents))], "text": pa.array(documents, pa.string())}),
        pa.table({"query_id": [f"q{row}" for row in range(len(queries))], "text": pa.array(queries, pa.string())}),
        {},
    )


def terms(text: str) -> list[str]:
    return [term for term in re.findall(r"(?u)\b\w\w+\b", text.lower()) if term not in {"of", "the", "and", "then"}]


def naive(query: str, documents: list[str]) -> list[float]:
    """Lucene's BM25 of every document, term by term."""
    counts = [Counter(terms(document)) for document in documents]
    mean = sum(count.total() for count in counts) / len(counts)
    scores = [0.0] * len(documents)
    for term in terms(query):
        n = sum(term in count for count in counts)
        for row, count in enumerate(counts):
            if count[term]:
                idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
                scores[row] += idf * count[term] / (count[term] + K1 * (1 - B + B * count.total() / mean))
    return scores


@pytest.mark.parametrize("depth", [1, 2, 3, 8, 10])
def test_equals_the_naive_loop(tmp_path: Path, depth: int) -> None:
    rows = np.array([6, 0, 1, 2, 3, 4, 5])
    ranked = rank(Store(tmp_path), make(DOCUMENTS, QUERIES), rows, depth)
    assert (ranked.shape, ranked.dtype) == ((7, depth), np.int64)
    for query, found in zip(rows, ranked, strict=True):
        scores = naive(QUERIES[query], DOCUMENTS)
        best = sorted((row for row, score in enumerate(scores) if score > 0), key=lambda row: (-scores[row], row))
        assert found.tolist() == (best + [-1] * depth)[:depth]


def test_ties_stand_by_row(tmp_path: Path) -> None:
    ranked = rank(Store(tmp_path), make(["no"] + ["oak"] * 50 + ["oak oak"], ["oak"]), np.array([0]), 20)
    assert ranked.tolist() == [[51, *range(1, 20)]]


def test_no_terms_and_no_queries(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert rank(store, make(["", "the"], ["oak"]), np.array([0]), 2).tolist() == [[-1, -1]]
    assert rank(store, make(DOCUMENTS, QUERIES), np.array([], np.int64), 2).shape == (0, 2)


def test_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, small = Store(tmp_path), make(DOCUMENTS, QUERIES)
    first = rank(store, small, np.array([0, 1]), 3)
    monkeypatch.setattr("data.bm25._terms", lambda texts: pytest.fail("ranked twice"))
    assert rank(store, small, np.array([0, 1]), 3).tolist() == first.tolist()


def test_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rank(Store(tmp_path / "whole"), make(DOCUMENTS, QUERIES), np.arange(7), 3)
    monkeypatch.setattr("data.bm25.SHARD_QUERIES", 3)
    assert rank(Store(tmp_path / "cut"), make(DOCUMENTS, QUERIES), np.arange(7), 3).tolist() == whole.tolist()
