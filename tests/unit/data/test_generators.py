"""Queries without a model: what is taken from a document, by loops and by hand, and how it lies beside real ones."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Shard, Store, UserError, load, open_collection, tokenize
from data.arrow import write_arrow
from data.formats import FORMATS
from data.formats.writers import write
from data.generated import extended, generated_alone, write_extended
from data.generators import ExcerptQueries, drawn_documents, inverse_document_frequencies, saliences, shard_rows

STILL = "Copper stills. The still is of copper. Yeast turns sugar into oak. Copper of the still takes the spirit."


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5), st.integers(0, 99))
def test_salience_is_the_cosine_with_all_other_sentences(sentences: list[list[int]], seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 3, 10).astype(float)
    for place, salience in enumerate(saliences(sentences, weights)):
        mine, others = Counter(sentences[place]), Counter(t for s in sentences for t in s)
        others.subtract(mine)
        product = sum(mine[t] * others[t] * weights[t] ** 2 for t in mine)
        norms = [math.sqrt(sum((n * weights[t]) ** 2 for t, n in each.items())) for each in (mine, others)]
        assert salience == pytest.approx(product / math.prod(norms) if all(norms) else 0.0)


def test_no_sentences_have_no_salience() -> None:
    assert saliences([], np.ones(3)).tolist() == []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def corpus(*texts: tuple[str, str]) -> str:
    lines = [{"_id": f"d{row}", "title": title, "text": text} for row, (title, text) in enumerate(texts, 1)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_document_frequencies(store: Store, beir_folder: Path, tokenizer_folder: Path) -> None:
    collection = load(store, "beir", beir_folder)
    tokens = tokenize(store, collection, "documents", tokenizer_folder, "t", 8)
    found = inverse_document_frequencies(tokens, 100)
    for token, weight in enumerate(found):
        count = sum(token in tokens.take([row])[0] for row in range(len(tokens)))
        assert weight == pytest.approx(math.log(len(tokens) / max(count, 1)))
    assert found[[2, 3]].tolist() == [0.0, 0.0], "[CLS] and [SEP], which all have"


def excerpts(store: Store, folder: Path, tokenizer: Path, kind: str, per_document: int = 1, seed: int = 0) -> pa.Table:
    collection = load(store, "beir", folder)
    tokens = tokenize(store, collection, "documents", tokenizer, "t", 64)
    rows, weights = store.root / "rows.arrow", store.root / "weights.arrow"
    write_arrow(pa.table({"document": drawn_documents(collection, None, 0)}), rows)
    write_arrow(pa.table({"weight": inverse_document_frequencies(tokens, 100)}), weights)
    place = collection.file("documents").parent
    worker = ExcerptQueries(place, rows, kind, per_document, tokenizer, weights, seed)  # type: ignore[arg-type]
    return worker(Shard(Path(), 0))


def test_titles(store: Store, beir_folder: Path, tokenizer_folder: Path) -> None:
    made = excerpts(store, beir_folder, tokenizer_folder, "title")
    assert made.to_pydict() == {"document": [0, 3, 4], "text": ["Copper", "Yeast", "Water"]}, "two have no title"


def test_salient_sentences(store: Store, beir: object, tokenizer_folder: Path) -> None:
    others = ("Oak", "Oak casks give the spirit its colour."), ("", "Yeast."), ("Empty", "")
    folder = beir(corpus=corpus(("Copper stills", STILL), *others), train=QRELS, test=QRELS)  # type: ignore[operator]
    made = excerpts(store, folder, tokenizer_folder, "salient", per_document=2)
    assert made["document"].to_pylist() == [0, 0, 1], "a sentence of two tokens is too short, and one has none"
    assert made["text"].to_pylist() == [
        "Copper of the still takes the spirit.",  # as the second one, with which it shares copper, still and of
        "The still is of copper.",
        "Oak casks give the spirit its colour.",  # the only one
    ]
    one = excerpts(store, folder, tokenizer_folder, "salient")
    assert one["text"].to_pylist() == [made["text"][row].as_py() for row in (0, 2)]


QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n"


def test_sentences_by_chance(store: Store, beir: object, tokenizer_folder: Path) -> None:
    folder = beir(corpus=corpus(*[("Copper stills", STILL)] * 40), train=QRELS, test=QRELS)  # type: ignore[operator]
    made = excerpts(store, folder, tokenizer_folder, "inverse-cloze", seed=1)
    assert made["document"].to_pylist() == list(range(40))
    assert len(set(made["text"].to_pylist())) == 4, "every sentence, some time"
    assert all(text in STILL for text in made["text"].to_pylist())
    assert made == excerpts(store, folder, tokenizer_folder, "inverse-cloze", seed=1)
    assert made != excerpts(store, folder, tokenizer_folder, "inverse-cloze", seed=2)
    several = excerpts(store, folder, tokenizer_folder, "inverse-cloze", per_document=9)
    assert len(several) == 40 * 4, "no sentence twice"


def test_documents_are_drawn_by_the_seed(store: Store, beir_folder: Path, beir: object) -> None:
    collection = load(store, "beir", beir_folder)
    assert (
        drawn_documents(collection, None, 3).tolist() == drawn_documents(collection, 9, 3).tolist() == [0, 1, 2, 3, 4]
    )
    drawn = {tuple(drawn_documents(collection, 2, seed).tolist()) for seed in range(40)}
    assert len(drawn) == 10
    assert all(a < b for a, b in drawn)
    texts = corpus(("", ""), ("", "Yeast."))
    with_an_empty_one = load(store, "beir", beir(corpus=texts, train=QRELS, test=QRELS))  # type: ignore[operator]
    assert drawn_documents(with_an_empty_one, None, 0).tolist() == [1]
    assert shard_rows(np.arange(5), Shard(Path(), 1), 2).tolist() == [2, 3]


def test_generated_queries_lie_behind_those_that_were_asked(store: Store, beir_folder: Path, tmp_path: Path) -> None:
    base = load(store, "beir", beir_folder)
    texts = pa.array(["what is copper", "is it oak", "what is copper", "and oak", "is it oak"])
    made = extended(base, np.array([0, 1, 3, 1, 1]), texts)
    assert made.queries.slice(0, 3).equals(base.queries)
    assert made.queries.slice(3).to_pydict() == {
        "query_id": ["generated:d1:1", "generated:d2:1", "generated:d2:2"],
        "text": ["what is copper", "is it oak", "and oak"],
    }
    pairs = made.qrels["generated"]
    assert list(zip(pairs.query_row.tolist(), pairs.doc_row.tolist(), strict=True)) == [(3, 0), (4, 1), (3, 3), (5, 1)]
    assert pairs.relevance.tolist() == [1, 1, 1, 1]
    assert made.generated.tolist() == [False] * 3 + [True] * 3
    assert made.qrels["train"] is base.qrels["train"]
    assert made.parts["documents"] == base.parts["documents"]
    assert made.parts["queries"] != base.parts["queries"]
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "documents.arrow").write_text("left by a kill")
    write_extended(base, made, folder)
    again = open_collection(folder)
    assert again.fingerprint == made.fingerprint
    assert again.queries.equals(made.queries)
    assert base.file("documents").samefile(folder / "documents.arrow")
    with pytest.raises(UserError, match=r"^collection.path: the collection holds generated queries already"):
        extended(made, np.array([0]), pa.array(["again"]))


def test_where_files_cannot_be_linked_they_are_copied(
    store: Store, beir_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(os, "link", refuse)
    base = load(store, "beir", beir_folder)
    made = extended(base, np.array([0]), pa.array(["what is copper"]))
    write_extended(base, made, tmp_path)
    assert open_collection(tmp_path).documents.equals(base.documents)


@pytest.mark.parametrize("form", ["beir", "trec", "parquet"])
def test_they_are_a_collection_of_their_own(store: Store, beir_folder: Path, tmp_path: Path, form: str) -> None:
    base = load(store, "beir", beir_folder)
    alone = generated_alone(extended(base, np.array([1, 0, 1]), pa.array(["is it oak", "what is copper", "and oak"])))
    write(alone, form, tmp_path / "own", {"generated.json": {"generator": "mine"}})
    read = FORMATS[form].read(str(tmp_path / "own"), ())
    assert json.loads((tmp_path / "own" / "generated.json").read_text()) == {"generator": "mine"}
    assert list(read.qrels) == ["train"]
    assert read.generated.all()
    texts, ids = read.queries["text"].to_pylist(), read.queries["query_id"].to_pylist()
    pairs = read.qrels["train"]
    documents = [read.documents["doc_id"][int(row)].as_py() for row in pairs.doc_row]
    assert sorted(zip(documents, [texts[row] for row in pairs.query_row], strict=True)) == [
        ("d1", "what is copper"),
        ("d2", "and oak"),
        ("d2", "is it oak"),
    ]
    assert all(id_.startswith("generated:") for id_ in ids)
    assert read.documents.equals(base.documents)
