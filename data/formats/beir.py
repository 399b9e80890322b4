"""The BEIR folder: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each plain or with .gz.

Whatever a user can get wrong in such a folder is a UserError that names file and line.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.collection import Collection, Qrels, collection
from data.errors import UserError

HEADER = "query-id<TAB>corpus-id<TAB>score"
CHUNK_ROWS = 65_536

log = logging.getLogger(__name__)


def beir_files(folder: Path) -> list[Path]:
    """The files of a BEIR folder: corpus, queries, then the judgments of each split by name.

    Raises UserError, listing what is there, where one is missing, and where one is there both plain and compressed.
    """
    if not folder.is_dir():
        mend = f"There are: {_names(folder.parent)}." if folder.parent.is_dir() else "Mend collection.path."
        raise UserError("no such folder", where=str(folder), mend=mend)
    files = [_one_of(folder, "corpus.jsonl"), _one_of(folder, "queries.jsonl")]
    if not (folder / "qrels").is_dir():
        raise _missing(folder, "qrels")
    splits = [path for path in (folder / "qrels").iterdir() if path.name.endswith((".tsv", ".tsv.gz"))]
    if not splits:
        raise _missing(folder / "qrels", "<split>.tsv")
    return files + [_one_of(folder / "qrels", f"{split}.tsv") for split in sorted({_split(path) for path in splits})]


def read_beir(path: str | Path) -> Collection:
    """Parse a BEIR folder. A document's text is its title, a blank and its text, stripped.

    Ids are strings; a whole number in their place is read as one (7 is "7"). A document may be empty: these are counted
    in a warning. Raises UserError, naming file and line, for everything else that does not fit the format.
    """
    corpus, queries, *splits = beir_files(Path(path))
    documents, doc_rows = _texts(corpus, "doc_id", titled=True)
    query_texts, query_rows = _texts(queries, "query_id", titled=False)
    qrels = {_split(file): _judgments(file, queries.name, query_rows, corpus.name, doc_rows) for file in splits}
    return collection(documents, query_texts, qrels)


def _texts(path: Path, id_column: str, *, titled: bool) -> tuple[pa.Table, dict[str, int]]:
    """The table of a JSON lines file, and the row of each id."""
    rows: dict[str, int] = {}
    line_of_row = array("q")
    ids: list[str] = []
    texts: list[str] = []
    chunks: list[pa.Table] = []
    empty = 0

    def cut() -> None:
        chunks.append(pa.table({id_column: pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())}))
        ids.clear()
        texts.clear()

    for number, line in _lines(path):
        where = f"{path}:{number}"
        record = _record(line, where)
        id_ = _id(record, where)
        text = _string(record, "text", where)
        if titled and record.get("title") is not None:
            text = f"{_string(record, 'title', where)} {text}"
        text = text.strip()
        empty += not text
        if id_ in rows:
            first = line_of_row[rows[id_]]
            raise UserError(
                f'id "{id_}" is there twice, first in line {first}', where=where, mend="Remove or rename one of them."
            )
        rows[id_] = len(rows)
        line_of_row.append(number)
        ids.append(id_)
        texts.append(text)
        if len(ids) == CHUNK_ROWS:
            cut()
    if not rows:
        raise UserError("the file is empty", where=str(path), mend="It needs at least one line of JSON.")
    if ids:
        cut()
    if empty:
        log.warning("%s: %s of %s texts are empty", path, f"{empty:,}", f"{len(rows):,}")
    return pa.concat_tables(chunks), rows


def _judgments(path: Path, queries: str, query_rows: dict[str, int], corpus: str, doc_rows: dict[str, int]) -> Qrels:
    """The judgments of one split."""
    first_line: dict[tuple[int, int], int] = {}
    relevance = array("i")
    header = True
    for number, line in _lines(path):
        where = f"{path}:{number}"
        cells = line.split("\t")
        if len(cells) != 3:
            raise UserError(
                f"{len(cells)} {'column' if len(cells) == 1 else 'columns'} where there should be 3",
                where=where,
                mend=f"A line is {HEADER}, separated by tabs.",
            )
        query, doc, score = (cell.strip() for cell in cells)
        value = _integer(score)
        if header:
            if value is not None:
                raise UserError("the header is missing", where=where, mend=f"The first line is {HEADER}.")
            header = False
            continue
        if value is None:
            raise UserError(f'score "{score}" is not a whole number of 32 bits', where=where, mend="Mend the score.")
        for kind, id_, file, known in (("query", query, queries, query_rows), ("document", doc, corpus, doc_rows)):
            if id_ not in known:
                count = f"{len(known):,} {'queries' if kind == 'query' else 'documents'}"
                raise UserError(
                    f'{kind} "{id_}" is not in {file} ({count})', where=where, mend="Mend the id, or remove the line."
                )
        pair = query_rows[query], doc_rows[doc]
        if first_line.setdefault(pair, number) != number:
            raise UserError(
                f'document "{doc}" is judged twice for query "{query}", first in line {first_line[pair]}',
                where=where,
                mend="Remove one of the two lines.",
            )
        relevance.append(value)
    if not first_line:
        raise UserError("the split has no judgments", where=str(path), mend="Add some, or remove the file.")
    pairs = np.array(list(first_line), np.int64)
    return Qrels(pairs[:, 0].copy(), pairs[:, 1].copy(), np.array(relevance, np.int32))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1; a byte order mark is dropped."""
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text and not text.isspace():
                    yield number, text
        except UnicodeDecodeError as error:
            raise UserError(
                f"byte {error.start + 1} of the line is not UTF-8",
                where=f"{path}:{number}",
                mend="Convert the file, for example with iconv.",
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise UserError(
                "the gzip file is damaged or cut off after this line" if number else "this is not a gzip file",
                where=f"{path}:{number}" if number else str(path),
                mend="Copy or compress it again.",
            ) from None


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:  # also what json says of integers with thousands of digits
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"not a line of JSON: {reason}", where=where, mend="Mend the line.") from None
    except RecursionError:
        raise UserError("not a line of JSON: nested too deeply", where=where, mend="Mend the line.") from None
    if not isinstance(record, dict):
        raise UserError(
            f"a JSON {_kind(record)} where there should be an object",
            where=where,
            mend='A line is {"_id": …, "text": …}.',
        )
    return record


def _id(record: dict[str, Any], where: str) -> str:
    if "_id" not in record:
        raise _no_key(record, "_id", where)
    id_ = record["_id"]
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    if not isinstance(id_, str):
        raise UserError(f"_id is a JSON {_kind(id_)}", where=where, mend="Make it a string or a whole number.")
    if id_.split() != [id_]:
        # A run file has blanks between its columns.
        raise UserError(
            f'_id "{id_}" is empty or holds white space', where=where, mend="A run file cannot carry it: rename it."
        )
    return _encodable(id_, "_id", where)


def _string(record: dict[str, Any], key: str, where: str) -> str:
    if key not in record:
        raise _no_key(record, key, where)
    value = record[key]
    if not isinstance(value, str):
        raise UserError(f"{key} is a JSON {_kind(value)}", where=where, mend='Make it a string; "" if there is none.')
    return _encodable(value, key, where)


def _encodable(value: str, key: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{key} holds half of a surrogate pair (\\ud800 to \\udfff)", where=where, mend="Remove it."
        ) from None
    return value


def _no_key(record: dict[str, Any], key: str, where: str) -> UserError:
    there = ", ".join(f'"{name}"' for name in record) or "none"
    return UserError(f'key "{key}" is missing (there are: {there})', where=where, mend="Add it.")


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "list"}
    return names.get(type(value), "object")


def _integer(text: str) -> int | None:
    """`text` as a relevance, None where it is no integer of 32 bits."""
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", text):
        return None
    value = int(text)
    return value if -(2**31) <= value < 2**31 else None


def _split(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tsv")


def _one_of(folder: Path, name: str) -> Path:
    """`name` in `folder`, plain or compressed."""
    there = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not there:
        raise _missing(folder, name)
    if len(there) == 2:
        raise UserError(f"both {name} and {name}.gz are there", where=str(folder), mend="Remove the one that is old.")
    return there[0]


def _missing(folder: Path, name: str) -> UserError:
    return UserError(
        f"{name} is missing (there are: {_names(folder)})",
        where=str(folder),
        mend="A BEIR folder has corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each plain or with .gz.",
    )


def _names(folder: Path, most: int = 10) -> str:
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "no files"
