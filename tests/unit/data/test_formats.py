"""Pins: every format reads the same collection as BEIR's, to the row; and what it says of what does not fit."""

from __future__ import annotations

import errno
import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Collection, Qrels, Store, UserError, load, read_beir
from data.collection import collection
from data.formats import FORMATS
from data.formats.writers import WRITERS, write

Write = Callable[..., Path]

DOCUMENTS = {
    "d1": ("Copper", "stills take sulphur."),
    "d2": ("", "Oak gives colour."),
    "d3": ("Yeast", "makes alcohol."),
}
QUERIES = {"q1": "why copper", "q2": "where is colour from", "q3": "what makes alcohol"}
TRAIN, TEST = [("q1", "d1", 1), ("q2", "d2", 2), ("q2", "d3", 0)], [("q3", "d3", 1)]
SPLITS = {"train": TRAIN, "test": TEST}


def text(id_: str) -> str:
    return " ".join(DOCUMENTS[id_]).strip()


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def tsv(rows: list[tuple[Any, ...]]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


CORPUS_ROWS = [{"_id": id_, "title": title, "text": body} for id_, (title, body) in DOCUMENTS.items()]
QUERY_ROWS = [{"_id": id_, "text": query} for id_, query in QUERIES.items()]
HEADER = "query-id\tcorpus-id\tscore\n"
BEIR = {
    "corpus.jsonl": jsonl(CORPUS_ROWS),
    "queries.jsonl": jsonl(QUERY_ROWS),
    **{f"qrels/{split}.tsv": HEADER + tsv(rows) for split, rows in SPLITS.items()},
}
QRELS = {split: tsv([(q, 0, d, r) for q, d, r in rows]) for split, rows in SPLITS.items()}
TREC_DOCUMENTS = "".join(
    f"<DOC>\n<DOCNO> {id_} </DOCNO>\n<TITLE>{title}</TITLE>\n<TEXT>\n{body}\n</TEXT>\n</DOC>\n"
    for id_, (title, body) in DOCUMENTS.items()
)
TOPICS = {
    # As in the ad hoc tracks: fields are left open. As in later ones: they are closed.
    "train": "".join(
        f"<top>\n<num> Number: {id_}\n<title> {QUERIES[id_]}\n\n<desc> Description:\nmore of it\n</top>\n"
        for id_ in ("q1", "q2")
    ),
    "test": f"<top>\n<num>q3</num>\n<title>\n{QUERIES['q3']}\n</title>\n<desc>more</desc>\n</top>\n",
}


def columns(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def judgments(rows: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    return [{"query-id": q, "corpus-id": d, "score": r} for q, d, r in rows]


def content(collection: Collection) -> dict[str, Any]:
    """All of a collection by its ids, whatever the order of its rows."""
    doc_ids, query_ids = collection.documents["doc_id"].to_pylist(), collection.queries["query_id"].to_pylist()
    return {
        "documents": dict(zip(doc_ids, collection.documents["text"].to_pylist(), strict=True)),
        "queries": dict(zip(query_ids, collection.queries["text"].to_pylist(), strict=True)),
        "qrels": {
            split: {
                (query_ids[q], doc_ids[d], int(r))
                for q, d, r in zip(qrels.query_row, qrels.doc_row, qrels.relevance, strict=True)
            }
            for split, qrels in collection.qrels.items()
        },
    }


EXPECTED = {
    "documents": {id_: text(id_) for id_ in DOCUMENTS},
    "queries": QUERIES,
    "qrels": {split: set(rows) for split, rows in SPLITS.items()},
}


def parquet(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    pq.write_table(columns(CORPUS_ROWS), folder / "corpus.parquet")
    pq.write_table(columns(QUERY_ROWS), folder / "queries.parquet")
    for split, rows in SPLITS.items():
        pq.write_table(columns(judgments(rows)), folder / "qrels" / f"{split}.parquet")
    return folder


def of_the_hub(folder: Path, judged: str = "default") -> Path:
    """A local copy of a hub data set with three configurations."""
    parquet(folder)
    files = {
        "corpus": {"corpus": "corpus.parquet"},
        "queries": {"queries": "queries.parquet"},
        judged: {split: f"qrels/{split}.parquet" for split in SPLITS},
    }
    described = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {file}\n" for split, file in splits.items())
        for name, splits in files.items()
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{described}---\n")
    return folder


def zipped(folder: Path) -> Path:
    """As BEIR is distributed: everything in one folder of a zip archive."""
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def packed(folder: Path) -> Path:
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    return folder


TREC = {
    "corpus.trec": TREC_DOCUMENTS,
    **{f"topics.{split}.txt": topics for split, topics in TOPICS.items()},
    **{f"qrels.{split}.txt": rows.replace("\t", " ") for split, rows in QRELS.items()},
}
TREC_TABLES = {
    "corpus.jsonl": jsonl([{"id": id_, "title": title, "contents": body} for id_, (title, body) in DOCUMENTS.items()]),
    "topics.train.tsv": tsv([(id_, QUERIES[id_]) for id_ in ("q1", "q2")]),
    "topics.test.tsv": tsv(list(QUERIES.items())),  # one that shares topics with the other
    **{f"qrels.{split}.txt": rows for split, rows in QRELS.items()},
}
MSMARCO = {
    "collection.tsv": tsv([(id_, text(id_)) for id_ in DOCUMENTS]),
    "queries.train.tsv": tsv([(id_, QUERIES[id_]) for id_ in ("q1", "q2")]),
    "queries.test.tsv": tsv([("q3", QUERIES["q3"])]),
    **{f"qrels.{split}.tsv": rows for split, rows in QRELS.items()},
}


def passages(*ids: str) -> list[dict[str, str]]:
    return [{"docid": id_, "title": DOCUMENTS[id_][0], "text": DOCUMENTS[id_][1]} for id_ in ids]


TEVATRON = {
    "train.jsonl": jsonl(
        [
            {"query_id": "q1", "query": QUERIES["q1"], "positive_passages": passages("d1"), "negative_passages": []},
            {"query_id": "q2", "query": QUERIES["q2"], "positive_passages": passages("d2"),
             "negative_passages": passages("d3", "d3")},
        ]
    ),
    "test.jsonl": jsonl([{"query_id": "q3", "query": QUERIES["q3"], "positive_passages": passages("d3")}]),
}  # fmt: skip
TEVATRON_CORPUS = {"corpus.jsonl": jsonl(passages(*DOCUMENTS))}
BINARY = {**EXPECTED, "qrels": {"train": {("q1", "d1", 1), ("q2", "d2", 1), ("q2", "d3", 0)}, "test": set(TEST)}}

MADE: dict[str, tuple[str, Callable[[Write, Path], Path], dict[str, Any]]] = {
    "beir": ("beir", lambda folder, _: folder(BEIR), EXPECTED),
    "beir, zip": ("beir", lambda folder, _: zipped(folder(BEIR)), EXPECTED),
    "beir, zip of gz": ("beir", lambda folder, _: zipped(packed(folder(BEIR))), EXPECTED),
    "trec": ("trec", lambda folder, _: folder(TREC), EXPECTED),
    "trec, gz": ("trec", lambda folder, _: packed(folder(TREC)), EXPECTED),
    "trec, tables": ("trec", lambda folder, _: folder(TREC_TABLES), EXPECTED),
    "msmarco": ("msmarco", lambda folder, _: folder(MSMARCO), EXPECTED),
    "msmarco, gz": ("msmarco", lambda folder, _: packed(folder(MSMARCO)), EXPECTED),
    "tevatron": ("tevatron", lambda folder, _: folder(TEVATRON), BINARY),
    "tevatron, corpus": ("tevatron", lambda folder, _: folder({**TEVATRON, **TEVATRON_CORPUS}), BINARY),
    "parquet": ("parquet", lambda _, path: parquet(path / "mine"), EXPECTED),
    "huggingface": ("huggingface", lambda _, path: of_the_hub(path / "mine"), EXPECTED),
    "huggingface, qrels": ("huggingface", lambda _, path: of_the_hub(path / "mine", "qrels"), EXPECTED),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_every_format_gives_the_same_collection(name: str, folder: Write, tmp_path: Path) -> None:
    format, make, expected = MADE[name]
    path = make(folder, tmp_path)
    store = Store(tmp_path / "store")
    first = load(store, format, path, ("train", "test"))
    assert content(first) == expected
    assert load(store, format, str(path), ("train", "test")).folder == first.folder


@pytest.mark.parametrize("name", [name for name in MADE if "zip" not in name])
def test_a_changed_file_is_read_again(name: str, folder: Write, tmp_path: Path) -> None:
    format, make, _ = MADE[name]
    path = make(folder, tmp_path)
    before = FORMATS[format].sources(str(path), ("train", "test"))
    file = next(file for file in sorted(path.rglob("*")) if file.is_file() and "train" in file.name)
    file.write_bytes(file.read_bytes() + b" ")
    assert FORMATS[format].sources(str(path), ("train", "test")) != before


def test_scifact_in_every_form_is_scifact(scifact: Path, folder: Write, tmp_path: Path) -> None:
    """The real collection, written in other forms by hand and read again: equal, ids, texts and judgments."""
    collection = read_beir(scifact)
    documents, queries = (
        list(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))
        for table in (collection.documents, collection.queries)
    )
    of_split = {
        split: [
            (queries[q][0], 0, documents[d][0], r)
            for q, d, r in zip(qrels.query_row, qrels.doc_row, qrels.relevance, strict=True)
        ]
        for split, qrels in collection.qrels.items()
    }
    tables = {f"queries.{split}.tsv": tsv(queries) for split in of_split}
    judged = {f"qrels.{split}.tsv": tsv(rows) for split, rows in of_split.items()}
    msmarco = folder({"collection.tsv": tsv(documents), **tables, **judged}, "msmarco")
    trec = folder(
        {
            "corpus.tsv": tsv(documents),
            **{f"topics.{split}.tsv": tsv(queries) for split in of_split},
            **{f"qrels.{split}.txt": tsv(rows) for split, rows in of_split.items()},
        },
        "trec",
    )
    for format, path in (("msmarco", msmarco), ("trec", trec)):
        parts = dict(FORMATS[format].read(str(path), ()).parts)
        assert parts == {part: value for part, value in collection.parts.items() if part != "titles"}, format


def write_pairs(folder: Path, rows: list[dict[str, Any]], split: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(columns(rows), folder / f"{split}.parquet")
    return folder


def test_triplets_of_sentence_transformers(tmp_path: Path) -> None:
    rows = [
        {"anchor": "why copper", "positive": "Copper stills.", "negative_1": "Oak.", "negative_2": "Yeast."},
        {"anchor": "why copper", "positive": "Yeast.", "negative_1": "Oak.", "negative_2": "Barley."},
    ]
    made = load(Store(tmp_path / "store"), "huggingface", write_pairs(tmp_path / "mine", rows), ("train", "test"))
    assert content(made) == {
        "documents": {"d0": "Copper stills.", "d1": "Oak.", "d2": "Yeast.", "d3": "Barley."},
        "queries": {"q0": "why copper"},
        "qrels": {"train": {("q0", "d0", 1), ("q0", "d1", 0), ("q0", "d2", 1), ("q0", "d3", 0)}},
    }


def test_lists_of_negatives_and_labelled_pairs(tmp_path: Path) -> None:
    listed = [{"query": "why", "positive": "Because.", "negatives": ["No.", "Never."]}]
    made = FORMATS["huggingface"].read(str(write_pairs(tmp_path / "listed", listed)), ())
    assert content(made)["qrels"] == {"train": {("q0", "d0", 1), ("q0", "d1", 0), ("q0", "d2", 0)}}
    labelled = [
        {"question": "why", "answer": "Because.", "label": 1},
        {"question": "why", "answer": "No.", "label": 0},
        {"question": "how", "answer": "No.", "label": 1},
    ]
    made = FORMATS["huggingface"].read(str(write_pairs(tmp_path / "labelled", labelled)), ())
    assert content(made)["qrels"] == {"train": {("q0", "d0", 1), ("q0", "d1", 0), ("q1", "d1", 1)}}


def scores_of(made: Any) -> dict[tuple[str, str], float]:
    queries, documents = made.queries["query_id"].to_pylist(), made.documents["doc_id"].to_pylist()
    rows = made.scores.to_pylist()
    return {(queries[row["query_row"]], documents[row["doc_row"]]): row["score"] for row in rows}


@pytest.mark.parametrize(
    ("said", "scores"),
    [
        ({"score": [3.5, 1, -2]}, [3.5, 1.0, -2.0]),
        ({"scores": [0, 0.25, 0.5]}, [0.0, 0.25, 0.5]),
        ({"label": [2.5, 4.0]}, [0.0, -2.5, -4.0]),  # margins
        ({"margin": [-1.0, 4.0]}, [0.0, 1.0, -4.0]),
    ],
)
def test_scores_beside_negatives(tmp_path: Path, said: Any, scores: list[float]) -> None:
    row = {"query": "why", "positive": "Because.", "negative_1": "No.", "negative_2": "Never.", **said}
    made = load(Store(tmp_path / "store"), "huggingface", write_pairs(tmp_path / "mine", [row]), ("train", "test"))
    assert content(made)["qrels"] == {"train": {("q0", "d0", 1), ("q0", "d1", 0), ("q0", "d2", 0)}}
    assert scores_of(made) == {("q0", f"d{place}"): score for place, score in enumerate(scores)}
    row["query"] = "why not"
    other = FORMATS["huggingface"].read(str(write_pairs(tmp_path / "other", [row])), ())
    assert other.parts["scores"] != made.parts["scores"]
    assert FORMATS["huggingface"].read(str(tmp_path / "mine"), ()).parts == made.parts


def test_one_margin_and_what_is_scored_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"query": "why", "positive": "Because.", "negative": "No.", "score": 3.5},
        {"query": "why", "positive": "Because.", "negative": "Never.", "score": 2.0},
        {"query": "how", "positive": "So.", "negative": "No.", "score": -1.0},
    ]
    folder = write_pairs(tmp_path / "mine", rows)
    made = FORMATS["huggingface"].read(str(folder), ())
    assert scores_of(made) == {
        ("q0", "d0"): 0.0, ("q0", "d1"): -3.5, ("q0", "d2"): -2.0, ("q1", "d3"): 0.0, ("q1", "d1"): 1.0
    }  # fmt: skip
    assert not caplog.records
    write_pairs(folder, [*rows, {**rows[0], "score": 4.0}])
    with caplog.at_level("WARNING"):
        assert scores_of(FORMATS["huggingface"].read(str(folder), ()))["q0", "d1"] == -4.0
    told = [record.getMessage() for record in caplog.records if record.name.startswith("data.")]
    assert told == [f"{folder}: 1 scores differ from an earlier one of their pair"]


def test_without_negatives_a_label_is_a_judgment_and_no_score(tmp_path: Path) -> None:
    row = {"question": "why", "answer": "Because.", "label": 1}
    assert FORMATS["huggingface"].read(str(write_pairs(tmp_path / "mine", [row])), ()).scores is None


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            [1.0, 2.0, 3.0, 4.0],
            "scores has 4 number(s) for a positive and 2 negative(s). Give 3 scores, the positive's ",
        ),
        ([float("nan"), 1.0, 2.0], "scores is neither a number nor a list of numbers. Mend it, or rename the column."),
        (["high", "low"], "scores is neither a number nor a list of numbers. Mend it, or rename the column."),
    ],
)
def test_scores_that_are_refused(tmp_path: Path, scores: Any, message: str) -> None:
    folder = write_pairs(
        tmp_path / "mine", [{"query": "why", "positive": "Because.", "negatives": ["No.", "Never."], "scores": scores}]
    )
    with pytest.raises(UserError) as error:
        FORMATS["huggingface"].read(str(folder), ())
    assert str(error.value).startswith(f"{folder}, train:1: {message}")


def test_splits_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "mine", [{"query": "why", "positive": "Because."}])
    write_pairs(folder, [{"query": "how", "positive": "So."}], "validation")
    assert set(FORMATS["huggingface"].read(str(folder), ("train", "test")).qrels) == {"train"}
    assert set(FORMATS["huggingface"].read(str(folder), ()).qrels) == {"train", "validation"}


def test_msmarco_dev_small_takes_the_queries_of_dev(folder: Write) -> None:
    files = {
        "collection.tsv": MSMARCO["collection.tsv"],
        "queries.dev.tsv": tsv(list(QUERIES.items())),
        "qrels.dev.tsv": QRELS["train"],
        "qrels.dev.small.tsv": QRELS["test"],
    }
    made = FORMATS["msmarco"].read(str(folder(files)), ())
    assert content(made)["qrels"] == {"dev": set(TRAIN), "dev.small": set(TEST)}
    assert made.queries.num_rows == 3


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch, folder: Write) -> None:
    """ir_datasets with an entry whose files are local."""
    import ir_datasets

    path = folder(MSMARCO)

    def made(split: str | None) -> Any:
        queries = {"queries_tsv": str(path / f"queries.{split}.tsv"), "qrels_trec": str(path / f"qrels.{split}.tsv")}
        return ir_datasets.create_dataset(docs_tsv=str(path / "collection.tsv"), **(queries if split else {}))

    entries = {"still": made(None), "still/train": made("train"), "still/test": made("test")}
    monkeypatch.setattr(ir_datasets, "load", entries.__getitem__)


def test_ir_datasets(catalogue: None, tmp_path: Path) -> None:
    made = load(Store(tmp_path / "store"), "ir_datasets", "still", ("train", "test", "dev"))
    assert content(made) == EXPECTED
    assert set(FORMATS["ir_datasets"].read("still", ("test",)).qrels) == {"test"}
    with pytest.raises(UserError) as error:
        FORMATS["ir_datasets"].read("stil", ("train",))
    assert str(error.value) == (
        'collection.path: ir_datasets has no documents under the id "stil". '
        "Its ids are listed at https://ir-datasets.com."
    )


def test_ir_datasets_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_datasets

    class Source:
        def has_docs(self) -> bool:
            return True

        def docs_iter(self) -> Any:
            raise RuntimeError("All download sources failed", ["one", "two"])

    monkeypatch.setattr(ir_datasets, "load", lambda name: Source())
    with pytest.raises(UserError) as error:
        FORMATS["ir_datasets"].read("still", ("train",))
    assert str(error.value) == (
        'collection.path: ir_datasets cannot read "still": All download sources failed. Look at what it printed above; '
        "what it has once downloaded it reads without a network."
    )


def test_ir_datasets_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("data.formats.irds.version", none)
    with pytest.raises(UserError, match=r"ir_datasets is not installed. pip install 'stillhouse\[ir_datasets\]'"):
        FORMATS["ir_datasets"].sources("still", ())


REFUSED: list[tuple[str, dict[str, str], str]] = [
    (
        "trec",
        {**TREC, "corpus.tsv": "d1\tx"},
        "mine: both corpus.tsv and corpus.trec are there. Remove the one that is old.",
    ),
    (
        "trec",
        {name: value for name, value in TREC.items() if name != "topics.test.txt"},
        "mine: topics.test.tsv|.trec|.txt is missing (there are: corpus.trec, qrels.test.txt, qrels.train.txt, "
        "topics.train.txt). A TREC folder has corpus.tsv, .jsonl or .trec, and for a split topics.<split>.tsv, .trec "
        "or .txt and qrels.<split>.txt, each plain or with .gz.",
    ),
    (
        "trec",
        {**TREC, "qrels.train.txt": "q1 d1 1\n"},
        "mine/qrels.train.txt:1: 3 columns where there should be 4. A line is: query, iteration, document, relevance, "
        "separated by blanks.",
    ),
    (
        "trec",
        {**TREC, "qrels.train.txt": "q1 0 d1 high\n"},
        'mine/qrels.train.txt:1: relevance "high" is not a whole number of 32 bits. Mend the relevance.',
    ),
    (
        "trec",
        {**TREC, "topics.test.txt": "<top>\n<num> q3\n<title> x\n<top>\n"},
        "mine/topics.test.txt:4: <top> of line 1 is not closed. Add </top>.",
    ),
    (
        "trec",
        {**TREC, "topics.test.txt": "<top>\n<num> q3\n"},
        "mine/topics.test.txt:1: <top> is not closed. Add </top>.",
    ),
    ("trec", {**TREC, "topics.test.txt": "</top>\n"}, "mine/topics.test.txt:1: </top> closes nothing. Add <top>."),
    (
        "trec",
        {**TREC, "topics.test.txt": "<top>\n<num> q3\n<desc> x\n</top>\n"},
        "mine/topics.test.txt:1: <title> is missing (there are: <num>, <desc>). Add it.",
    ),
    (
        "trec",
        {**TREC, "topics.test.txt": "<top>\n<num> q1\n<title> another\n</top>\n"},
        'mine/topics.train.txt:1: id "q1" is there twice, first in line 1 of mine/topics.test.txt. '
        "Remove or rename one of them.",
    ),
    ("trec", {**TREC, "corpus.trec": "\n"}, "mine/corpus.trec: the file is empty. It needs at least one document."),
    (
        "msmarco",
        {**MSMARCO, "collection.tsv": "d1 no tab\n"},
        "mine/collection.tsv:1: 1 column where there should be 2. A line is pid<TAB>passage, separated by tabs.",
    ),
    (
        "msmarco",
        {**MSMARCO, "qrels.train.tsv": "q1\t0\td9\t1\n"},
        'mine/qrels.train.tsv:1: document "d9" is not in collection.tsv (3 documents), and no judgment is of a known '
        "query and document. Mend the ids.",
    ),
    (
        "msmarco",
        {"collection.tsv": "d1\tx\n"},
        "mine: qrels.<split>.tsv is missing (there are: collection.tsv). A folder of MS MARCO has collection.tsv, and "
        "for a split queries.<split>.tsv and qrels.<split>.tsv, each plain or with .gz.",
    ),
    (
        "tevatron",
        {"train.jsonl": '{"query_id": 1, "query": "x", "positive_passages": {}}\n'},
        "mine/train.jsonl:1: positive_passages is a JSON object. Make it a list of passages.",
    ),
    (
        "tevatron",
        {"train.jsonl": '{"query_id": 1, "query": "x", "positive_passages": ["y"]}\n'},
        'mine/train.jsonl:1: positive_passages holds a JSON string. A passage is {"docid": …, "title": …, "text": …}.',
    ),
    (
        "tevatron",
        {"train.jsonl": '{"query_id": 1, "query": "x", "positive_passages": []}\n'},
        "mine/train.jsonl: the split has no judgments. Add some, or remove the file.",
    ),
    (
        "tevatron",
        {"train.jsonl": TEVATRON["train.jsonl"] + TEVATRON["test.jsonl"].replace("makes alcohol", "is alcohol")},
        'mine/train.jsonl:3: id "d3" is there twice, first in line 2. Remove or rename one of them.',
    ),
    (
        "tevatron",
        {
            "train.jsonl": jsonl(
                [{"query_id": 1, "query": "x", "positive_passages": passages("d1"),
                  "negative_passages": passages("d2", "d1")}]
            )
        },
        'mine/train.jsonl:1: document "d1" is judged twice for query "1", first in line 1. '
        "Remove one of the two lines.",
    ),
    (
        "tevatron",
        {"corpus.jsonl": jsonl(passages("d1"))},
        "mine: <split>.jsonl is missing (there are: corpus.jsonl). A folder of Tevatron has <split>.jsonl, and "
        "corpus.jsonl if it likes, each plain or with .gz.",
    ),
    (
        "parquet",
        {"corpus.parquet": "x", "queries.parquet": "x"},
        "mine: qrels/<split>.parquet is missing (there are: corpus.parquet, queries.parquet). A folder of Parquet has "
        "corpus.parquet, queries.parquet and qrels/<split>.parquet.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("format", "files", "expected"), REFUSED)
def test_refuses(format: str, files: dict[str, str], expected: str, folder: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(Store(tmp_path / "store"), format, folder(files))
    assert str(error.value).replace(f"{tmp_path}/", "") == expected


def test_refuses_tables(tmp_path: Path) -> None:
    def told(rows: list[dict[str, Any]]) -> str:
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        folder = parquet(tmp_path / "mine")
        pq.write_table(columns(rows), folder / "qrels" / "train.parquet")
        with pytest.raises(UserError) as error:
            FORMATS["parquet"].read(str(folder), ())
        return str(error.value).replace(f"{tmp_path}/", "")

    assert told([{"query-id": "q1", "corpus-id": "d1", "score": 0.5}]) == (
        "mine/qrels/train.parquet:1: score 0.5 is not a whole number. Mend the relevance."
    )
    assert told([{"query": "q1", "corpus-id": "d1"}]) == (
        "mine/qrels/train.parquet:1: no column is named query-id or query_id or qid "
        '(there are: "query", "corpus-id"). Rename the one that is meant.'
    )
    (tmp_path / "mine" / "corpus.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"mine/corpus.parquet: this is no Parquet file: "):
        FORMATS["parquet"].read(str(tmp_path / "mine"), ())


def test_refuses_data_sets_that_are_not_there_or_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("huggingface_hub.constants", "datasets.config"):  # do not ask the network, which takes long to fail
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^collection.path: the data set nobody/has-this cannot be read: "):
        FORMATS["huggingface"].read("nobody/has-this", ("train",))
    folder = of_the_hub(tmp_path / "mine")
    described = (folder / "README.md").read_text()
    (folder / "README.md").write_text(described.replace("config_name: queries", "config_name: topics"))
    with pytest.raises(UserError) as error:
        FORMATS["huggingface"].read(str(folder), ())
    assert str(error.value) == (
        f"collection.path: the data set {folder} has 3 configurations: corpus, topics, default. "
        f"Choose one: {folder}:corpus."
    )


@pytest.mark.parametrize("format", ["parquet", "trec", "msmarco", "tevatron", "beir"])
def test_refuses_a_file_in_place_of_a_folder(format: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"corpus.jsonl: this is a file. Name the folder that it belongs to.$"):
        FORMATS[format].sources(str(tmp_path / "corpus.jsonl"), ())


def test_parquet_refuses_a_zip(tmp_path: Path) -> None:
    archive = zipped(parquet(tmp_path / "mine"))
    with pytest.raises(UserError, match=r"mine.zip: this is a file. Name the folder that it belongs to.$"):
        FORMATS["parquet"].read(str(archive), ())


def test_refuses_a_zip_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"mine.zip: this is no zip archive. Copy it again."):
        FORMATS["beir"].read(str(tmp_path / "mine.zip"), ())


@pytest.mark.parametrize("form", WRITERS)
def test_scifact_written_and_read_again_is_scifact(form: str, scifact: Path, tmp_path: Path) -> None:
    collection = read_beir(scifact)
    write(collection, form, tmp_path / "out")
    again = FORMATS[form].read(str(tmp_path / "out"), ())
    expected, found = content(collection), content(again)
    if form == "trec":  # where topics belong to splits
        judged = {query for rows in expected["qrels"].values() for query, _, _ in rows}
        expected["queries"] = {q: " ".join(t.split()) for q, t in expected["queries"].items() if q in judged}
    else:
        assert again.fingerprint == collection.fingerprint
    assert found == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(TEXT, min_size=1, max_size=6),
    queries=st.lists(TEXT, min_size=1, max_size=4),
    pairs=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(-2, 3)), min_size=1, max_size=8),
)
def test_what_is_written_is_read(documents: list[str], queries: list[str], pairs: set[tuple[int, int, int]]) -> None:
    """Whatever the texts hold: line ends, tabs, quotation marks, separators that str.splitlines would cut at."""
    judged = {(q % len(queries), d % len(documents)): r for q, d, r in sorted(pairs)}
    rows = np.array(list(judged), np.int64)
    made = collection(
        pa.table({"doc_id": [f"d{i}" for i in range(len(documents))], "text": [text.strip() for text in documents]}),
        pa.table({"query_id": [f"q{i}" for i in range(len(queries))], "text": [text.strip() for text in queries]}),
        {"dev/small": Qrels(rows[:, 0].copy(), rows[:, 1].copy(), np.array(list(judged.values()), np.int32))},
    )
    with tempfile.TemporaryDirectory() as folder:
        for form in WRITERS:
            write(made, form, Path(folder) / form)
            found, expected = content(FORMATS[form].read(str(Path(folder) / form), ())), content(made)
            assert found["documents"] == expected["documents"]
            assert found["qrels"] == {"dev.small": expected["qrels"]["dev/small"]}
            if form == "trec":
                topics = {query for query, _, _ in expected["qrels"]["dev/small"]}
                expected["queries"] = {q: " ".join(t.split()) for q, t in expected["queries"].items() if q in topics}
            assert found["queries"] == expected["queries"]


def test_writing_refuses(beir_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = read_beir(beir_folder)
    with pytest.raises(UserError, match=r'^format: "lemur" is not written. Formats: beir, trec, parquet.$'):
        write(made, "lemur", tmp_path / "out")
    with pytest.raises(UserError, match=r"tiny: it is there already. Choose another name.$"):
        write(made, "beir", beir_folder)

    def full(collection: Collection, folder: Path) -> None:
        (folder / "corpus.jsonl").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"out: it cannot be written: Not a directory. Choose another place.$"):
        write(made, "beir", tmp_path / "file" / "out")
    (tmp_path / "file").unlink()
    monkeypatch.setitem(WRITERS, "beir", full)
    with pytest.raises(UserError, match="the disk is full"):
        write(made, "beir", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "nothing is left half-written"


def test_judgments_of_what_is_not_there_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": "b"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "c"}\n')
    rows = "q1\td1\t1\nq1\td8\t1\nq9\td1\t1\nq1\td2\t0\n"
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match=r'"d8" is not in corpus.jsonl \(2 documents\) \(and 1 more such judgments\)'):
        load(store, "beir", folder)
    for _ in range(2):  # read from the files, and from the store
        found = load(store, "beir", folder, skip_dangling=True).qrels["test"]
        assert (found.query_row.tolist(), found.doc_row.tolist(), found.relevance.tolist()) == ([0, 0], [0, 1], [1, 0])
        assert found.dangling is not None
        assert (found.dangling.judgments, found.dangling.where[-10:]) == (2, "test.tsv:3")
