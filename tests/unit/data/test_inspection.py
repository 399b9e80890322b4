"""Pins: what is counted, by hand, and that each thing that bites is told, in words, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from data import Qrels, inspect
from data.collection import Collection, Dangling, collection
from data.inspection import Pair, Side, Split


class Tokens:
    """Lengths as token shards have them."""

    def __init__(self, lengths: list[int], max_tokens: int, truncated: int) -> None:
        self.lengths, self.max_tokens, self.truncated = np.array(lengths, np.int32), max_tokens, truncated


def made(documents: dict[str, str], queries: dict[str, str], **splits: list[tuple[int, int, int]]) -> Collection:
    return collection(
        pa.table({"doc_id": list(documents), "text": list(documents.values())}),
        pa.table({"query_id": list(queries), "text": list(queries.values())}),
        {
            name: Qrels(*(np.array(column) for column in zip(*rows, strict=True)))  # type: ignore[arg-type]
            for name, rows in splits.items()
        },
    )


def test_nothing_bites() -> None:
    clean = made({"d1": "a b", "d2": "c"}, {"q1": "x", "q2": "y"}, train=[(0, 0, 1)], test=[(1, 1, 2)])
    found = inspect(clean, Tokens([3, 3], 8, 0), Tokens([4, 3], 8, 0), "train", "test")  # type: ignore[arg-type]
    assert found.documents == Side(texts=2, tokens=(3, 3.5, 4), max_tokens=8, truncated=0, empty=0, duplicates=0)
    assert found.queries == Side(texts=2, tokens=(3, 3.0, 3), max_tokens=8, truncated=0, empty=0, duplicates=0)
    assert found.splits == {"train": Split(1, 1, 1, 1, 0), "test": Split(1, 1, 1, 1, 0)}
    assert found.sample == [Pair("train", "q1", "x", "d1", "a b"), Pair("test", "q2", "y", "d2", "c")]
    assert found.warnings == []


def test_all_that_bites() -> None:
    bad = made(
        {"d1": "a", "d2": "a", "d3": "", "d4": "", "q2": "why"},
        {"q1": "x", "q2": "why", "q3": "x", "q4": "z", "q5": ""},
        train=[(0, 0, 1), (0, 1, 1), (1, 2, 0), (1, 3, -1)],
        test=[(2, 0, 1), (3, 4, 1)],
    )
    found = inspect(bad, Tokens([3] * 5, 4, 1), Tokens([9, 9, 2, 2, 9], 9, 3), "train", "test")  # type: ignore[arg-type]
    assert (found.documents.empty, found.documents.duplicates) == (2, 1)
    assert found.splits["train"] == Split(queries=2, judgments=4, relevant=2, most_relevant=2, without_relevant=1)
    apart = "no search tells them apart, and only one of them may be judged"
    assert found.warnings == [
        "3 of 5 documents (60.0%) are cut at 9 tokens",
        "2 of 5 documents (40.0%) are empty",
        f"1 of 5 documents (20.0%) have the text of another: {apart}",
        "1 of 5 queries (20.0%) are cut at 4 tokens",
        "1 of 5 queries (20.0%) are empty",
        "1 of 5 queries (20.0%) have the text of another",
        "1 of 2 queries of train (50.0%) have no judgment above 0",
        "1 of 5 queries (20.0%) have no judgment in any split",
        "1 of 5 queries (20.0%) are documents, word for word (1 queries have the id of a document): a search finds "
        "them first",
        "1 of 2 queries of test (50.0%) are in train too",
        "1 of 2 relevant documents of test (50.0%) are relevant in train too: what is learned there helps here",
    ]


@pytest.mark.parametrize(("train", "test"), [("train", "train"), ("dev", "test"), ("train", "dev")])
def test_splits_that_are_not_there_cannot_leak(train: str, test: str) -> None:
    same = made({"d1": "a", "d2": "b"}, {"q1": "x", "q2": "y"}, train=[(0, 0, 1)], test=[(1, 0, 1)])
    tokens = Tokens([3, 3], 8, 0)
    assert inspect(same, tokens, tokens, train, test).warnings == []  # type: ignore[arg-type]
    assert len(inspect(same, tokens, tokens, "train", "test").warnings) == 1  # type: ignore[arg-type]


def test_the_sample_is_from_all_over_the_split() -> None:
    many = made(
        {f"d{i}": f"text {i}" for i in range(9)},
        {f"q{i}": f"query {i}" for i in range(9)},
        train=[(i, i, 1) for i in range(9)],
    )
    tokens = Tokens([3] * 9, 8, 0)
    found = inspect(many, tokens, tokens, "train", "test")  # type: ignore[arg-type]
    assert [pair.query_id for pair in found.sample] == ["q0", "q3", "q6"]


def test_judgments_of_what_is_not_there_are_told() -> None:
    found = made({"d1": "a"}, {"q1": "x"}, train=[(0, 0, 1)], test=[(0, 0, 1)])
    told = Dangling(3, 'document "d9" is not in corpus.jsonl (1 documents)', "qrels/test.tsv:7")
    found.qrels["test"] = replace(found.qrels["test"], dangling=told)
    warnings = inspect(found, Tokens([3], 8, 0), Tokens([4], 8, 0), "train", "test").warnings  # type: ignore[arg-type]
    assert warnings[0] == (
        "3 of 4 judgments of test (75.0%) are of no text here and are left out, the first qrels/test.tsv:7: document "
        '"d9" is not in corpus.jsonl (1 documents); trec_eval counts such relevant documents as never found'
    )
