"""Pins: parsed once and then mapped; parsed again when a file changes; fingerprints follow the content of each part."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from data import Store, UserError, load, read_beir
from data.collection import collection


def test_load_is_read_beir_and_is_reused(beir_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "store")
    with caplog.at_level(logging.INFO):
        first, again = load(store, "beir", beir_folder), load(store, "beir", str(beir_folder))
    stage = first.folder.name[:4] if first.folder else ""
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"collection {stage}…: made", f"collection {stage}…: reused"]
    parsed = read_beir(beir_folder)
    for loaded in (first, again):
        assert loaded.documents.equals(parsed.documents)
        assert loaded.queries.equals(parsed.queries)
        assert loaded.fingerprint == parsed.fingerprint
        assert list(loaded.qrels) == list(parsed.qrels)
        for split, qrels in parsed.qrels.items():
            assert loaded.qrels[split].query_row.tolist() == qrels.query_row.tolist()
            assert loaded.qrels[split].doc_row.tolist() == qrels.doc_row.tolist()
            assert loaded.qrels[split].relevance.tolist() == qrels.relevance.tolist()
    assert loaded.file("documents").is_file()
    with pytest.raises(ValueError, match="in memory only"):
        parsed.file("documents")


def test_a_new_judgment_changes_the_judgments_only(beir_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    before = load(store, "beir", beir_folder)
    with (beir_folder / "qrels" / "train.tsv").open("a") as file:
        file.write("q1\td2\t1\n")
    after = load(store, "beir", beir_folder)
    assert len(after.qrels["train"]) == len(before.qrels["train"]) + 1
    assert {part for part in before.parts if before.parts[part] != after.parts[part]} == {"qrels/train"}
    assert after.fingerprint != before.fingerprint


def test_fingerprint_sees_text_and_not_chunks() -> None:
    queries = pa.table({"query_id": ["q"], "text": ["?"]})

    def fingerprint(texts: list[str]) -> str:
        return collection(pa.table({"doc_id": ["a", "b"], "text": texts}), queries, {}).fingerprint

    assert fingerprint(["xy", "z"]) != fingerprint(["x", "yz"])
    whole = pa.table({"doc_id": ["a", "b", "c"], "text": ["x", "", "ÿz"]})
    cut = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert cut["text"].num_chunks == 2
    assert collection(cut, queries, {}).fingerprint == collection(whole, queries, {}).fingerprint


def test_refuses_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(Store(tmp_path), "lemur", tmp_path)
    known = "beir, huggingface, ir_datasets, msmarco, parquet, tevatron, trec"
    assert str(error.value) == f'collection.format: no format "lemur". Known formats: {known}.'


def test_import_is_light() -> None:
    heavy = "ray", "torch", "transformers", "bm25s", "faiss", "mlflow", "datasets", "ir_datasets"
    code = f"import sys, data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
