"""Documents that a file ranks or lists: every form, the order of a run with its ties, the cut, what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Collection, Store, UserError, open_candidates, read_candidates
from data.collection import collection

IDS = [f"d{row}" for row in range(12)]
QUERIES = ["q0", "q1", "q2", "q3"]
ROWS = np.array([0, 2, 3])  # q1 is not asked for


def texts(kind: str, ids: list[str]) -> pa.Table:
    return pa.table({f"{kind}_id": ids, "text": ids})


COLLECTION: Collection = collection(texts("doc", IDS), texts("query", QUERIES), {})


def read(folder: Path, name: str, content: str, depth: int = 100) -> Any:
    file = folder / name
    file.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    found = read_candidates(Store(folder / "store"), COLLECTION, file, ROWS, depth, "negatives.path")
    return open_candidates(found, len(ROWS))


RUN = """\
q0 Q0 d1 1 0.5 tag
q0 Q0 d10 2 0.5 tag
q0 Q0 d3 9 0.75 tag
q1 Q0 nobody 1 9.0 tag
q3 Q0 d4 1 -2 tag
q0 Q0 d2 4 0.5 tag
q0 Q0 d3 5 0.25 tag
unknown Q0 d3 5 0.25 tag
"""


@pytest.mark.parametrize("name", ["bm25.trec", "bm25.trec.gz"])
def test_a_run_is_ordered_as_trec_eval_orders_it(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, RUN)
    # By score, then by id, both descending: "d2" comes before "d10" and "d1". A document counts once, at its best.
    assert found.rows.tolist() == [[3, 2, 10, 1], [-1] * 4, [4, -1, -1, -1]]
    assert found.scores.tolist() == [[0.75, 0.5, 0.5, 0.5], [-np.inf] * 4, [-2.0, *[-np.inf] * 3]]
    assert read(tmp_path, name, RUN, depth=2).rows.tolist() == [[3, 2], [-1, -1], [4, -1]]


def test_top1000(tmp_path: Path) -> None:
    found = read(tmp_path, "top1000.train.tsv", "q2\td5\twhat is it\tIt is five\nq2\td4\twhat is it\tFour\n")
    assert (found.rows.tolist(), found.scores) == ([[-1, -1], [5, 4], [-1, -1]], None)
    found = read(tmp_path, "top1000.dev", "q2\td5\twhat is\tit is\n")  # six words, as many as a run has columns
    assert (found.rows.tolist(), found.scores) == ([[-1], [5], [-1]], None)


def test_triples(tmp_path: Path) -> None:
    content = "q0\td1\td9\nq0\td1\td3\nq1\td1\td2\nq0\td2\td9\nq3\td0\td7\n"
    found = read(tmp_path, "qidpidtriples.train.full.2.tsv", content)
    assert (found.rows.tolist(), found.scores) == ([[9, 3], [-1, -1], [7, -1]], None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), min_size=1, max_size=400), st.integers(1, 5))
def test_a_long_run_is_cut_to_what_sorting_it_whole_leaves(lines: list[tuple[int, int]], depth: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        content = "".join(f"q0 Q0 d{row} 0 {score} t\n" for row, score in lines)
        found = read(Path(folder), "run.txt", content, depth)
    best: dict[int, int] = {}
    for row, score in lines:
        best[row] = max(score, best.get(row, score))
    ranked = sorted(best, key=lambda row: (best[row], f"d{row}"), reverse=True)[:depth]
    assert found.rows[0].tolist() == ranked
    assert found.scores[0].tolist() == [best[row] for row in ranked]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.txt", "q0 Q0 d1 1 0.5 t\nq0 Q0 d77 1 0.5 t\n", 'run.txt:2: document "d77" is not in the collection (12'),
        ("run.txt", "q0 Q0 d1 1 high t\n", 'run.txt:1: score "high" is not a number. Mend the score.'),
        ("run.txt", "q0 d1 0.5\n", "run.txt:1: 3 columns where there should be 6. A line is of a TREC run (query, Q0"),
        ("top.tsv", "q0\td1\ta\tb\nq0\td1\n", "top.tsv:2: 2 columns where there should be 4. A line is of"),
        ("qidpidtriples.tsv", "q0\td1\n", "qidpidtriples.tsv:1: 2 columns where there should be 3. A line"),
        ("run.txt", "\n", "run.txt: the file is empty. A line is of a TREC run"),
        ("run.txt", "q1 Q0 d1 1 0.5 t\n", "run.txt: it has no document for any training query. Check"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, name, content)
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^negatives.path: .*nowhere is no file. A line is of a TREC run"):
        read_candidates(Store(tmp_path), COLLECTION, tmp_path / "nowhere", ROWS, 1, "negatives.path")
