"""Collections written out, in forms that other tools read; what is read again from one is the same collection."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.arrow import numbers
from data.collection import Collection, Qrels
from data.errors import UserError
from data.mirror import TEMPORARY
from data.store import Json, full_disk

BATCH_ROWS = 65_536


def write(collection: Collection, format: str, folder: Path, beside: Mapping[str, Json] | None = None) -> None:
    """Write a collection to a folder that is not there yet; it appears when it is complete.

    `beside` are JSON files, by name, that are written along with it.
    Raises UserError for a format that is not written, a folder that is there, and a full disk.
    """
    if format not in WRITERS:
        raise UserError(f'"{format}" is not written', where="format", mend=f"Formats: {', '.join(WRITERS)}.")
    with _new(folder) as partial:
        partial.mkdir(parents=True)
        WRITERS[format](collection, partial)
        for name, value in (beside or {}).items():
            (partial / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_table(table: pa.Table, file: Path) -> None:
    """Write a table to a Parquet file that is not there yet. Raises UserError where it is, and for a full disk."""
    import pyarrow.parquet

    with _new(file) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, partial)


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A path to write at; what is written appears under its name when it is complete."""
    if path.exists():
        raise UserError("it is there already", where=str(path), mend="Choose another name.")
    partial = path.with_name(f"{path.name}{TEMPORARY}")
    _remove(partial)
    try:
        yield partial
        partial.rename(path)
    except OSError as error:
        _remove(partial)
        raise full_disk(error, path) or UserError(
            f"it cannot be written: {error.strerror}", where=str(path), mend="Choose another place."
        ) from error


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _beir(collection: Collection, folder: Path) -> None:
    """corpus.jsonl, queries.jsonl, and qrels/<split>.tsv with a header."""
    _write(folder / "corpus.jsonl", (_json(row) for batch in _documents(collection) for row in batch.to_pylist()))
    _write(folder / "queries.jsonl", (_json({"_id": id_, "text": text}) for id_, text in _rows(collection.queries)))
    for split, judged in _judgments(collection).items():
        lines = (f"{query}\t{document}\t{score}" for query, document, score in _rows(judged))
        _write(folder / "qrels" / f"{split}.tsv", lines, "query-id\tcorpus-id\tscore")


def _trec(collection: Collection, folder: Path) -> None:
    """corpus.jsonl (docid, contents), and topics.<split>.tsv and qrels.<split>.txt as trec_eval reads them.

    A topic is a line: white space in it becomes blanks. Topics without judgments belong to no split and are left out.
    """
    documents = (_json({"docid": id_, "contents": text}) for id_, text in _rows(collection.documents))
    _write(folder / "corpus.jsonl", documents)
    texts = dict(_rows(collection.queries))
    for split, judged in _judgments(collection).items():
        topics = dict.fromkeys(judged["query-id"].to_pylist())
        _write(folder / f"topics.{split}.tsv", (f"{query}\t{' '.join(texts[query].split())}" for query in topics))
        lines = (f"{query} 0 {document} {score}" for query, document, score in _rows(judged))
        _write(folder / f"qrels.{split}.txt", lines)


def _parquet(collection: Collection, folder: Path) -> None:
    """corpus.parquet, queries.parquet and qrels/<split>.parquet, in the columns of BEIR."""
    import pyarrow.parquet as pq

    (folder / "qrels").mkdir()
    pq.write_table(pa.Table.from_batches(_documents(collection)), folder / "corpus.parquet")
    pq.write_table(collection.queries.rename_columns(["_id", "text"]), folder / "queries.parquet")
    for split, judged in _judgments(collection).items():
        pq.write_table(judged, folder / "qrels" / f"{split}.parquet")


WRITERS: Mapping[str, Callable[[Collection, Path], None]] = {"beir": _beir, "trec": _trec, "parquet": _parquet}


def _documents(collection: Collection) -> Iterator[pa.RecordBatch]:
    """`_id`, `title` where there are titles, and `text`, so that they are joined to the same text again."""
    lengths = None if collection.titles is None else numbers(collection.titles["length"])
    row = 0
    for batch in collection.documents.to_batches(BATCH_ROWS):
        ids, texts = batch.columns
        if lengths is None:
            yield pa.record_batch({"_id": ids, "text": texts})
            continue
        cut = [_cut(text, length) for text, length in zip(texts.to_pylist(), lengths[row:].tolist(), strict=False)]
        row += len(batch)
        titles, bodies = ([each[part] for each in cut] for part in range(2))
        yield pa.record_batch({"_id": ids, "title": titles, "text": bodies})


def _cut(text: str, length: int) -> tuple[str, str]:
    """Title and text, of which the title is so many characters and a blank."""
    return (text[:length], text[length + 1 :]) if text[length : length + 1] in ("", " ") and length else ("", text)


def _judgments(collection: Collection) -> dict[str, pa.Table]:
    """Ids and scores, by split; a slash in its name, as ir_datasets has them, would be a folder and becomes a dot."""

    def table(qrels: Qrels) -> pa.Table:
        return pa.table(
            {
                "query-id": collection.queries["query_id"].take(pa.array(qrels.query_row)),
                "corpus-id": collection.documents["doc_id"].take(pa.array(qrels.doc_row)),
                "score": qrels.relevance,
            }
        )

    return {split.replace("/", "."): table(qrels) for split, qrels in collection.qrels.items()}


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    for batch in table.to_batches(BATCH_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _json(value: dict[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write(path: Path, lines: Iterator[str], header: str | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        if header:
            file.write(f"{header}\n")
        file.writelines(f"{line}\n" for line in lines)
