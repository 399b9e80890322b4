"""Scores of pairs: which pairs there are, every form of file, what is taken over from other stages, what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Collection, Store, UserError, pair_scores
from data.collection import collection
from data.pair_scores import PairScores, distinct_pairs, known, pairs_of, read_scores, scores_stage, write_scores
from losses.contract import Space

DOCUMENTS = 12


def texts(kind: str, count: int) -> pa.Table:
    ids = [f"{kind[0]}{row}" for row in range(count)]
    return pa.table({f"{kind}_id": ids, "text": ids})


COLLECTION: Collection = collection(texts("doc", DOCUMENTS), texts("query", 4), {})
PAIRS = np.array([0 * 12 + 1, 0 * 12 + 3, 2 * 12 + 5])  # q0 with d1 and d3, q2 with d5


def read(folder: Path, name: str, content: str, space: str = "dot") -> list[float]:
    file = folder / name
    file.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    found = read_scores(Store(folder / "store"), COLLECTION, file, space, PAIRS, "teacher.scores.path")
    return PairScores(found).take(PAIRS).tolist()


def test_the_spaces_are_those_of_the_losses() -> None:
    assert pair_scores.Space == Space


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.tuples(*[st.integers(0, 11)] * 2)), min_size=1), max_size=6),
    st.integers(1, 20),
)
def test_the_distinct_pairs(batches: list[list[tuple[int, tuple[int, int]]]], block: int) -> None:
    before, pair_scores._BLOCK = pair_scores._BLOCK, block
    try:
        arrays = [(np.array([query for query, _ in batch]), np.array([rows for _, rows in batch])) for batch in batches]
        found = distinct_pairs(iter(arrays), DOCUMENTS)
    finally:
        pair_scores._BLOCK = before
    expected = {query * DOCUMENTS + row for batch in batches for query, rows in batch for row in rows}
    assert found.tolist() == sorted(expected)


FORMS = {
    "run.trec": "q0 Q0 d1 1 0.5 t\nq0 Q0 d3 2 -0.25 t\nq9 Q0 d1 1 7 t\nq2 Q0 d99 1 7 t\nq2 Q0 d5 1 2 t\n",
    "run.trec.gz": "q0 Q0 d1 1 0.5 t\nq0 Q0 d3 2 -0.25 t\nq2 Q0 d5 1 2 t\n",
    "margins.tsv": "0.5\t-0.25\tq0\td1\td3\n2\t1\tq2\td5\td7\n",
    "pairs.jsonl": '{"query_id": "q0", "doc_id": "d1", "score": 0.5}\n{"qid": "q0", "pid": "d3", "score": -0.25}\n'
    '{"query_id": "q2", "passage_id": "d5", "score": 9}\n{"query_id": "q2", "passage_id": "d5", "score": 2}\n',
    "lists.jsonl": '{"query_id": "q0", "scores": {"d1": 0.5, "d3": -0.25, "d4": 8}}\n'
    '{"qid": "q2", "scores": {"d5": 2}}\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_scores, "_BLOCK", 2)
    assert read(tmp_path, name, FORMS[name]) == [0.5, -0.25, 2.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.trec", "q0 Q0 d1 1 0.5 t\nq0 Q0 d3 2 x t\n", 'run.trec:2: score "x" is not a number. Mend the score.'),
        ("run.trec", "q0 Q0 d1 1 0.5 t\nq0 d3\n", "run.trec:2: 2 columns where there were 6. A line is of a TREC run"),
        ("run.trec", "q0 d1 1 0.5\n", "run.trec:1: 4 columns in its first line. A line is of a TREC run (query, Q0,"),
        ("run.trec", "", "run.trec: the file is empty. A line is"),
        ("scores.pkl.gz", "x", "scores.pkl.gz: this is a pickle, which may run any code when it is read. If"),
        ("a.jsonl", '{"query_id": "q0", "score": 1}\n', 'a.jsonl:1: no key "doc_id" (there are: "query_id", "score").'),
        ("a.jsonl", '{"query_id": "q0", "doc_id": "d1"}\n', 'a.jsonl:1: no key "score" (there are: "query_id", "doc_'),
        ("a.jsonl", '{"query_id": "q0", "scores": {"d1": true}}\n', "a.jsonl:1: score true is not a number. Mend"),
        ("a.jsonl", '{"query_id": "q0", "scores": {"d1": NaN}}\n', "a.jsonl:1: score NaN is not a number. Mend"),
        (
            "run.trec",
            "q0 Q0 d1 1 0.5 t\n",
            'run.trec: 2 of the 3 pairs that training meets have no score, the first query "q0" with document "d3". '
            "Draw the negatives from what is scored",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, name, content)
    assert str(refused.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize(("space", "low", "high"), [("probability", 0, 1), ("cosine", -1, 1)])
def test_a_score_outside_of_its_space_is_refused(tmp_path: Path, space: str, low: int, high: int) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, "run.trec", FORMS["run.trec"], space)
    outside = -0.25 if space == "probability" else 2
    assert f"run.trec: {outside:g} is no {space}, which lies between {low} and {high}. Name" in str(refused.value)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^teacher.scores.path: .*nowhere is no file. A line is of"):
        read_scores(Store(tmp_path), COLLECTION, tmp_path / "nowhere", "dot", PAIRS, "teacher.scores.path")


def test_a_pair_without_a_score(tmp_path: Path) -> None:
    stage = scores_stage(Store(tmp_path), COLLECTION, {"model": "a"}, PAIRS)
    scores = PairScores(stage.build(lambda partial: write_scores(partial, PAIRS[::-1], np.float32([3, 2, 1]))))
    pairs = pairs_of(np.array([0, 2]), np.array([[3, 1], [5, 5]]), DOCUMENTS)
    assert scores.take(pairs).tolist() == [[2, 1], [3, 3]]
    with pytest.raises(KeyError, match="2 pairs have no score"):
        scores.take(np.array([1, 2, 999]))
    assert len(scores) == 3


def test_what_other_stages_of_the_same_teacher_hold_is_known(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def build(teacher: str, pairs: list[int], scores: list[float]) -> Path:
        stage = scores_stage(store, COLLECTION, {"model": teacher}, np.array(pairs))
        return stage.build(lambda partial: write_scores(partial, np.array(pairs), np.float32(scores)))

    first, second = build("a", [1, 2, 3], [1, 2, 3]), build("a", [3, 4], [33, 44])
    build("b", [5], [5])
    broken = scores_stage(store, COLLECTION, {"model": "a"}, np.array([6]))
    broken.partial.mkdir(parents=True)
    (broken.partial / "manifest.json").write_text("{}")  # left by a kill between manifest and rename
    stage = scores_stage(store, COLLECTION, {"model": "a"}, np.array([2, 3, 5, 6]))
    found = known(stage, np.array([2, 3, 5, 6]))
    assert found.pairs.tolist() == [2, 3]
    assert found.scores[0] == 2
    assert sum(found.used.values()) == 2
    assert set(found.used) <= {first, second}
    empty = known(scores_stage(store, COLLECTION, {"model": "c"}, PAIRS), PAIRS)
    assert (empty.used, empty.pairs.tolist()) == ({}, [])
