"""A test collection in memory: documents and queries as Arrow tables, judgments as row numbers.

From here on a document or a query is named by its row. Ids come back only where a run is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.arrow import mask, numbers, read_arrow, write_arrow
from data.errors import UserError
from data.store import Store, fingerprint

VERSION = 4
GENERATED = "generated"  # the split of generated queries; with a colon, what their ids begin with

Rows = npt.NDArray[np.int64]


class Dangling(NamedTuple):
    """Judgments of a split whose query or document is not there: how many, and of the first what it is and where."""

    judgments: int
    what: str
    where: str


@dataclass(frozen=True, eq=False)
class Qrels:
    """Judgments: document `doc_row[i]` has `relevance[i]` for query `query_row[i]`; three arrays of one length.

    `dangling` tells of those that were read beside them and are of no text.
    """

    query_row: Rows
    doc_row: Rows
    relevance: npt.NDArray[np.int32]
    dangling: Dangling | None = None

    def __len__(self) -> int:
        return len(self.query_row)

    @property
    def relevant(self) -> Qrels:
        """The judgments whose relevance is above 0."""
        return self.select(self.relevance > 0)

    def __add__(self, other: Qrels) -> Qrels:
        """These judgments and then the others."""
        return Qrels(
            np.concatenate([self.query_row, other.query_row]),
            np.concatenate([self.doc_row, other.doc_row]),
            np.concatenate([self.relevance, other.relevance]),
        )

    def select(self, mask: npt.NDArray[np.bool_]) -> Qrels:
        """The judgments at which `mask` is true."""
        return Qrels(self.query_row[mask], self.doc_row[mask], self.relevance[mask])


@dataclass(frozen=True, eq=False)
class Collection:
    """Documents (`doc_id`, `text`), queries (`query_id`, `text`) and judgments by split.

    `parts` maps "documents", "queries" and "qrels/<split>" to a fingerprint of what each holds, so that a stage that
    reads documents alone is not made again when a judgment is added. `folder` is the stage in the store that the
    tables are memory-mapped from; None where they are in memory only. `scores` is what a teacher has said of pairs
    (`query_row`, `doc_row`, `score`), where the files hold such; the part is "scores". `titles` has for each document
    how many characters of its text are a title (`length`), where there are titles; the part is "titles".
    """

    documents: pa.Table
    queries: pa.Table
    qrels: dict[str, Qrels]
    parts: Mapping[str, str]
    folder: Path | None = None
    scores: pa.Table | None = None
    titles: pa.Table | None = None

    @property
    def fingerprint(self) -> str:
        """What tells this collection from any other; the same however its files were compressed."""
        return fingerprint(dict(self.parts))

    @property
    def generated(self) -> npt.NDArray[np.bool_]:
        """Which queries nobody has asked, because a generator made them: (Q,)."""
        return mask(pc.starts_with(self.queries["query_id"], f"{GENERATED}:"))

    @property
    def document_ids(self) -> Sequence[str]:
        """The id of each document's row; a task of another process opens them by their file."""
        return DocumentIds(self.file("documents").parent)

    def file(self, part: str) -> Path:
        """The Arrow file of "documents" or "queries". Raises ValueError for a collection that is in no store."""
        if self.folder is None:
            raise ValueError("this collection is in memory only: use data.load")
        return self.folder / f"{part}.arrow"


class DocumentIds(Sequence[str]):
    """The ids of a collection's documents, read from its file when they are asked for; a task opens it by its path."""

    def __init__(self, collection: Path) -> None:
        self._collection = collection
        self._column = open_collection(collection).documents["doc_id"]

    def __reduce__(self) -> tuple[type[DocumentIds], tuple[Path]]:
        return DocumentIds, (self._collection,)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[int(row)].as_py()


def collection(
    documents: pa.Table,
    queries: pa.Table,
    qrels: dict[str, Qrels],
    scores: pa.Table | None = None,
    titles: pa.Table | None = None,
    known: Mapping[str, str] | None = None,
) -> Collection:
    """A collection of these tables, with the fingerprints of its parts; `known` are those that need not be computed."""
    tables = {"documents": documents, "queries": queries}
    parts = {part: (known or {}).get(part) or _digest(table) for part, table in tables.items()}
    for split, judgments in qrels.items():
        parts[f"qrels/{split}"] = _of_rows(parts, judgments.query_row, judgments.doc_row, judgments.relevance)
    if scores is not None:
        parts["scores"] = _of_rows(parts, *(numbers(scores[name]) for name in scores.column_names))
    if titles is not None:
        lengths = hashlib.sha256(numbers(titles["length"]).tobytes()).hexdigest()
        parts["titles"] = fingerprint([parts["documents"], lengths])
    return Collection(documents, queries, qrels, parts, scores=scores, titles=titles)


def _of_rows(parts: Mapping[str, str], *columns: npt.NDArray[Any]) -> str:
    """A fingerprint of columns, of which some are rows: these mean nothing without the ids that they stand for."""
    content = hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()
    return fingerprint([parts["documents"], parts["queries"], content])


def load(
    store: Store, format: str, path: str | Path, splits: Sequence[str] = (), skip_dangling: bool = False
) -> Collection:
    """The collection at `path`, or of that name, parsed once and memory-mapped from the store from then on.

    It is parsed again when a file of it changes. Formats that would have to download them read no splits but those
    named. Raises UserError for an unknown format, for what the format's reader refuses, and for a judgment whose query
    or document is not there, unless such are to be skipped.
    """
    from data.formats import FORMATS  # here, because the formats build what this module defines

    if format not in FORMATS:
        raise UserError(
            f'no format "{format}"', where="collection.format", mend=f"Known formats: {', '.join(sorted(FORMATS))}."
        )
    known, name, wanted = FORMATS[format], str(path), tuple(splits)
    stage = store.stage("collection", VERSION, {"format": format, "sources": known.sources(name, wanted)})
    found = open_collection(stage.build(lambda partial: write_parts(known.read(name, wanted), partial)))
    for dangling in [each.dangling for each in found.qrels.values() if each.dangling]:
        if not skip_dangling:
            more = f" (and {dangling.judgments - 1:,} more such judgments)" if dangling.judgments > 1 else ""
            mend = "Mend the id, remove the line, or set collection.skip_dangling to true."
            raise UserError(dangling.what + more, where=dangling.where, mend=mend)
    return found


def write_parts(collection: Collection, folder: Path, but: str = "") -> None:
    """Write each part of a collection to a folder of the store, all but one."""
    tables = {"documents": collection.documents, "queries": collection.queries}
    for split, qrels in collection.qrels.items():
        columns = {"query_row": qrels.query_row, "doc_row": qrels.doc_row, "relevance": qrels.relevance}
        tables[f"qrels/{split}"] = pa.table(columns)
    for part, table in (("scores", collection.scores), ("titles", collection.titles)):
        if table is not None:
            tables[part] = table
    (folder / "qrels").mkdir(exist_ok=True)
    for name, table in tables.items():
        if name != but:
            write_arrow(table, folder / f"{name}.arrow")
    for split, qrels in collection.qrels.items():
        if qrels.dangling:
            told = json.dumps(qrels.dangling._asdict())
            (folder / f"qrels/{split}.dangling.json").write_text(told, encoding="utf-8")
    (folder / "parts.json").write_text(json.dumps(dict(collection.parts)), encoding="utf-8")


def open_collection(folder: Path) -> Collection:
    """The collection in a finished stage of the store, memory-mapped."""
    parts: dict[str, str] = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
    tables = {part: read_arrow(folder / f"{part}.arrow") for part in parts}
    qrels = {
        part.removeprefix("qrels/"): replace(
            Qrels(*(numbers(table[name]) for name in ("query_row", "doc_row", "relevance"))),  # type: ignore[arg-type]
            dangling=_dangling(folder, part),
        )
        for part, table in tables.items()
        if part.startswith("qrels/")
    }
    others = tables.get("scores"), tables.get("titles")
    return Collection(tables["documents"], tables["queries"], qrels, parts, folder, *others)


def _dangling(folder: Path, part: str) -> Dangling | None:
    file = folder / f"{part}.dangling.json"
    return Dangling(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def matches(ordered: Rows, values: Rows) -> tuple[Rows, Rows]:
    """All (i, j) with values[i] == ordered[j], in the order of i and then of j: two arrays of one length."""
    first = np.searchsorted(ordered, values, side="left")
    counts = np.searchsorted(ordered, values, side="right") - first
    i = np.repeat(np.arange(len(values)), counts)
    return i, np.arange(len(i)) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def _digest(table: pa.Table) -> str:
    """A fingerprint of a table of strings; the same however its rows are cut into chunks."""
    digest = hashlib.sha256()
    for column in table.itercolumns():
        lengths, content = hashlib.sha256(), hashlib.sha256()
        for chunk in column.chunks:
            offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset :][: len(chunk) + 1]
            lengths.update(np.diff(offsets).tobytes())
            content.update(memoryview(chunk.buffers()[2] or b"")[offsets[0] : offsets[-1]])
        digest.update(lengths.digest() + content.digest())
    return digest.hexdigest()[:16]
