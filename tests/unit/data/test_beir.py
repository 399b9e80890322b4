"""Pins: what a BEIR folder becomes, that compression does not matter, and the message for every way to get it wrong."""

from __future__ import annotations

import gzip
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data import UserError, read_beir

Write = Callable[..., Path]
HEADER = "query-id\tcorpus-id\tscore\n"


def message(folder: Path) -> str:
    """What the reader says of a folder, with the folder itself shortened."""
    with pytest.raises(UserError) as error:
        read_beir(folder)
    return str(error.value).replace(str(folder), "mine")


def test_tables(beir_folder: Path) -> None:
    collection = read_beir(beir_folder)
    assert collection.documents.to_pydict() == {
        "doc_id": ["d1", "d2", "d3", "d4", "d5"],
        "text": [
            "Copper Copper stills take sulphur out of the spirit.",
            "Oak casks give the spirit its colour.",
            "Barley is malted before it is mashed.",
            "Yeast Yeast turns sugar into alcohol.",
            "Water",
        ],
    }
    assert collection.queries["query_id"].to_pylist() == ["q1", "q2", "q3"]
    assert collection.queries["text"].to_pylist()[2] == "what makes alcohol"
    train = collection.qrels["train"]
    assert (train.query_row.tolist(), train.doc_row.tolist()) == ([0, 1, 1], [0, 1, 2])
    assert (train.relevance.tolist(), train.relevance.dtype, train.doc_row.dtype) == ([1, 2, 0], "int32", "int64")
    assert train.relevant.doc_row.tolist() == [0, 1]
    assert list(collection.qrels) == ["test", "train"]


def test_gzip_and_plain_are_equal(beir_folder: Path, tmp_path: Path) -> None:
    packed = shutil.copytree(beir_folder, tmp_path / "packed")
    for file in [*packed.rglob("*.jsonl"), *packed.rglob("*.tsv")]:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    plain, compressed = read_beir(beir_folder), read_beir(packed)
    assert compressed.documents.equals(plain.documents)
    assert compressed.queries.equals(plain.queries)
    assert compressed.qrels["train"].doc_row.tolist() == plain.qrels["train"].doc_row.tolist()
    assert compressed.fingerprint == plain.fingerprint


def test_what_is_let_pass(beir: Write, caplog: pytest.LogCaptureFixture) -> None:
    """A byte order mark, Windows line ends, blank lines, whole numbers as ids, null as title, empty documents."""
    folder = beir(
        corpus='\ufeff{"_id": 1, "title": null, "text": " one "}\r\n\r\n{"_id": "2", "text": ""}\r\n',
        queries='{"_id": 7, "text": "seven"}',
        train="\n" + HEADER.replace("\n", "\r\n") + "7\t1\t-1\r\n\r\n7\t2\t+2",
        test=HEADER + "7\t1\t1\n",
    )
    with caplog.at_level(logging.WARNING):
        collection = read_beir(folder)
    assert collection.documents.to_pydict() == {"doc_id": ["1", "2"], "text": ["one", ""]}
    assert collection.qrels["train"].relevance.tolist() == [-1, 2]
    assert [record.getMessage() for record in caplog.records] == [f"{folder}/corpus.jsonl: 1 of 2 texts are empty"]


def test_scifact(scifact: Path) -> None:
    collection = read_beir(scifact)
    assert (collection.documents.num_rows, collection.queries.num_rows) == (5183, 1109)
    counts = {split: (len(set(qrels.query_row)), len(qrels)) for split, qrels in collection.qrels.items()}
    assert counts == {"train": (809, 919), "test": (300, 339)}
    row = collection.documents["doc_id"].to_pylist().index("31715818")
    assert collection.documents["text"][row].as_py().startswith("New opportunities: the use of nanotechnologies")
    assert collection.qrels["train"].doc_row[0] == row


CORPUS = [
    ("", "mine/corpus.jsonl: the file is empty. It needs at least one line of JSON."),
    (
        '{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": "b"\n',
        "mine/corpus.jsonl:2: not a line of JSON: Expecting ',' delimiter at column 26. Mend the line.",
    ),
    (
        '\n["d1", "a"]\n',
        'mine/corpus.jsonl:2: a JSON list where there should be an object. A line is {"_id": …, "text": …}.',
    ),
    ('{"id": "d1", "text": "a"}', 'mine/corpus.jsonl:1: key "_id" is missing (there are: "id", "text"). Add it.'),
    ('{"_id": "d1"}', 'mine/corpus.jsonl:1: key "text" is missing (there are: "_id"). Add it.'),
    (
        '{"_id": "d1", "text": null}',
        'mine/corpus.jsonl:1: text is a JSON null. Make it a string; "" if there is none.',
    ),
    (
        '{"_id": "d1", "title": 3, "text": ""}',
        'mine/corpus.jsonl:1: title is a JSON number. Make it a string; "" if there is none.',
    ),
    ('{"_id": 1.0, "text": ""}', "mine/corpus.jsonl:1: _id is a JSON number. Make it a string or a whole number."),
    ('{"_id": true, "text": ""}', "mine/corpus.jsonl:1: _id is a JSON boolean. Make it a string or a whole number."),
    (
        '{"_id": "d 1", "text": ""}',
        'mine/corpus.jsonl:1: _id "d 1" is empty or holds white space. A run file cannot carry it: rename it.',
    ),
    (
        '{"_id": "", "text": ""}',
        'mine/corpus.jsonl:1: _id "" is empty or holds white space. A run file cannot carry it: rename it.',
    ),
    (
        '{"_id": "d1", "text": "\\ud800"}',
        "mine/corpus.jsonl:1: text holds half of a surrogate pair (\\ud800 to \\udfff). Remove it.",
    ),
    (
        '{"_id": "7", "text": "a"}\n\n{"_id": 7, "text": "b"}\n',
        'mine/corpus.jsonl:3: id "7" is there twice, first in line 1. Remove or rename one of them.',
    ),
]


@pytest.mark.parametrize(("corpus", "expected"), CORPUS)
def test_refuses_corpus(beir: Write, corpus: str, expected: str) -> None:
    assert message(beir(corpus=corpus)) == expected


def test_refuses_queries(beir: Write) -> None:
    twice = '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n'
    assert message(beir(queries=twice)) == (
        'mine/queries.jsonl:2: id "q1" is there twice, first in line 1. Remove or rename one of them.'
    )


def test_refuses_deep_json_and_long_numbers(beir: Write, tmp_path: Path) -> None:
    assert message(beir(corpus="[" * 200_000)) == (
        "mine/corpus.jsonl:1: not a line of JSON: nested too deeply. Mend the line."
    )
    (tmp_path / "mine" / "corpus.jsonl").write_text('{"_id": ' + "1" * 5000 + "}")
    assert message(tmp_path / "mine").startswith("mine/corpus.jsonl:1: not a line of JSON: Exceeds the limit")


QRELS = [
    ("", "mine/qrels/train.tsv: the split has no judgments. Add some, or remove the file."),
    (HEADER, "mine/qrels/train.tsv: the split has no judgments. Add some, or remove the file."),
    (
        "q1\td1\t1\n",
        "mine/qrels/train.tsv:1: the header is missing. The first line is query-id<TAB>corpus-id<TAB>score.",
    ),
    (
        HEADER + "q9\td1\t1\n",
        'mine/qrels/train.tsv:2: query "q9" is not in queries.jsonl (3 queries), and no judgment is of a known query '
        "and document. Mend the ids.",
    ),
    (
        HEADER + "q1\t0\td1\t1\n",
        "mine/qrels/train.tsv:2: 4 columns where there should be 3. A line is query-id<TAB>corpus-id<TAB>score, "
        "separated by tabs.",
    ),
    (
        HEADER + "q1 d1 1\n",
        "mine/qrels/train.tsv:2: 1 column where there should be 3. A line is query-id<TAB>corpus-id<TAB>score, "
        "separated by tabs.",
    ),
    (HEADER + "q1\td1\t0.5\n", 'mine/qrels/train.tsv:2: score "0.5" is not a whole number of 32 bits. Mend the score.'),
    (
        HEADER + "q1\td1\t4294967296\n",
        'mine/qrels/train.tsv:2: score "4294967296" is not a whole number of 32 bits. Mend the score.',
    ),
    (
        HEADER + "q1\td1\t1\nq2\td2\t1\nq1\td1\t0\n",
        'mine/qrels/train.tsv:4: document "d1" is judged twice for query "q1", first in line 2. '
        "Remove one of the two lines.",
    ),
]


@pytest.mark.parametrize(("train", "expected"), QRELS)
def test_refuses_qrels(beir: Write, train: str, expected: str) -> None:
    assert message(beir(train=train)) == expected


PARTS = "A BEIR folder has corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each plain or with .gz."


def test_refuses_folders(beir_folder: Path) -> None:
    with pytest.raises(UserError) as error:
        read_beir(beir_folder.parent / "tyni")
    assert str(error.value) == f"{beir_folder.parent}/tyni: no such folder. There are: tiny."

    (beir_folder / "queries.jsonl.gz").write_bytes(b"")
    assert message(beir_folder) == (
        "mine: both queries.jsonl and queries.jsonl.gz are there. Remove the one that is old."
    )
    (beir_folder / "queries.jsonl.gz").unlink()
    (beir_folder / "queries.jsonl").rename(beir_folder / "topics.jsonl")
    there = "there are: corpus.jsonl, qrels, topics.jsonl"
    assert message(beir_folder) == f"mine: queries.jsonl is missing ({there}). {PARTS}"
    (beir_folder / "topics.jsonl").rename(beir_folder / "queries.jsonl")

    for split in ("train", "test"):
        (beir_folder / "qrels" / f"{split}.tsv").rename(beir_folder / "qrels" / f"{split}.txt")
    assert message(beir_folder) == f"mine/qrels: <split>.tsv is missing (there are: test.txt, train.txt). {PARTS}"
    shutil.rmtree(beir_folder / "qrels")
    assert message(beir_folder) == f"mine: qrels is missing (there are: corpus.jsonl, queries.jsonl). {PARTS}"


def test_refuses_bytes(beir_folder: Path) -> None:
    corpus = beir_folder / "corpus.jsonl"
    corpus.write_bytes('{"_id": "d1", "text": "ok"}\n{"_id": "d2", "text": "Öl"}\n'.encode("latin-1"))
    assert message(beir_folder) == (
        "mine/corpus.jsonl:2: byte 24 of the line is not UTF-8. Convert the file, for example with iconv."
    )
    corpus.unlink()
    packed = beir_folder / "corpus.jsonl.gz"
    whole = gzip.compress(b"".join(b'{"_id": "d%d", "text": "%d"}\n' % (i, i * i) for i in range(20_000)))
    packed.write_bytes(whole[: len(whole) // 2])
    told = message(beir_folder)
    where, _, rest = told.partition(": ")
    assert rest == "the compressed file is damaged or cut off after this line. Copy or compress it again."
    assert 5_000 < int(where.removeprefix("mine/corpus.jsonl.gz:")) < 15_000
    packed.write_bytes(b'{"_id": "d1", "text": "not compressed"}\n')
    assert message(beir_folder) == "mine/corpus.jsonl.gz: this is not a gzip file. Copy or compress it again."
