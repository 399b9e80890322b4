"""Documents that others ranked or listed for the queries, read from a file: runs, and MS MARCO's candidates."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.arrow import numbers, read_arrow, write_arrow
from data.collection import Collection, Rows
from data.errors import UserError
from data.formats.files import lines
from data.store import Json, Store, file_digest, fingerprint

VERSION = 2
FILE = "candidates.arrow"
FORMS = (
    "A line is of a TREC run (query, Q0, document, rank, score, tag), of MS MARCO's top1000 (query, document and their "
    "texts, separated by tabs), or, where the name begins with qidpidtriples, query, relevant and other document."
)


class Candidates(NamedTuple):
    """`rows` (Q, k) of documents, best first, -1 where there are no more; `scores` (Q, k) where the file has scores."""

    rows: Rows
    scores: npt.NDArray[np.float32] | None


def read_candidates(
    store: Store, collection: Collection, path: str | Path, query_rows: Rows, depth: int, where: str
) -> Path:
    """The folder of the store with what the file holds, made from it unless it is there.

    The first `depth` documents of each query are kept: of a run those with the highest scores, equal ones by id as
    trec_eval has them, otherwise those that come first. Queries that are not asked for are passed over.
    Raises UserError, naming `where`, for a path that is no file; naming file and line, for a line of no known form and
    for an unknown document.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{file} is no file", where=where, mend=FORMS)
    inputs: dict[str, Json] = {
        "file": file_digest(file),
        "triples": _is_triples(file),
        "documents": collection.parts["documents"],
        "queries": collection.parts["queries"],
        "query_rows": fingerprint(query_rows.tolist()),
        "depth": depth,
    }

    def make(partial: Path) -> None:
        query_ids = collection.queries["query_id"].take(pa.array(query_rows)).to_pylist()
        found = _collected(file, {id_: line for line, id_ in enumerate(query_ids)}, collection, depth)
        write_arrow(pa.table({name: column.ravel() for name, column in found.items()}), partial / FILE)

    return store.stage("candidates", VERSION, inputs).build(make)


def open_candidates(folder: Path, queries: int) -> Candidates:
    """What a finished stage holds for so many queries."""
    table = read_arrow(folder / FILE)
    columns = {name: numbers(table[name]).reshape(queries, -1) for name in table.column_names}
    return Candidates(columns["document"], columns.get("score"))


def _collected(
    file: Path, line_of: dict[str, int], collection: Collection, depth: int
) -> dict[str, npt.NDArray[np.generic]]:
    document_ids = collection.documents["doc_id"].to_pylist()
    row_of = {id_: row for row, id_ in enumerate(document_ids)}
    rows = [array("q") for _ in line_of]
    scores = [array("f") for _ in line_of]
    parse, scored = _form(file)
    for number, query, document, score in parse(file):
        line = line_of.get(query)
        if line is None:
            continue
        row = row_of.get(document)
        if row is None:
            raise UserError(
                f'document "{document}" is not in the collection ({len(row_of):,} documents)',
                where=f"{file}:{number}",
                mend="Mend the id, or remove the line.",
            )
        rows[line].append(row)
        scores[line].append(score)
        if len(rows[line]) >= 4 * depth + 64:  # so that memory does not grow with the file
            rows[line], scores[line] = _best(rows[line], scores[line], depth, document_ids, scored)
    kept = [_best(*each, depth, document_ids, scored) for each in zip(rows, scores, strict=True)]
    widest = max((len(each) for each, _ in kept), default=0)
    if not widest:
        raise UserError("it has no document for any training query", where=str(file), mend="Check the ids of queries.")
    found = np.full((len(kept), widest), -1, np.int64)
    values = np.full((len(kept), widest), -np.inf, np.float32)
    for line, (some_rows, some_scores) in enumerate(kept):
        found[line, : len(some_rows)], values[line, : len(some_rows)] = some_rows, some_scores
    return {"document": found, "score": values} if scored else {"document": found}


def _best(
    rows: array[int], scores: array[float], depth: int, document_ids: list[str], scored: bool
) -> tuple[array[int], array[float]]:
    """The first `depth` distinct documents."""
    order = list(range(len(rows)))
    if scored:
        order.sort(key=lambda place: document_ids[rows[place]], reverse=True)
        order.sort(key=lambda place: -scores[place])
    first: dict[int, float] = {}
    for place in order:
        first.setdefault(rows[place], scores[place])
        if len(first) == depth:
            break
    return array("q", first), array("f", first.values())


Entries = Iterator[tuple[int, str, str, float]]  # line, query, document, score


def _form(file: Path) -> tuple[Callable[[Path], Entries], bool]:
    """How the file is read, and whether it has scores."""
    if _is_triples(file):
        return _triples, False
    for _, line in lines(file):
        return (_top, False) if line.count("\t") == 3 else (_run, True)
    raise UserError("the file is empty", where=str(file), mend=FORMS)


def _is_triples(file: Path) -> bool:
    return file.name.startswith("qidpidtriples")


def _run(file: Path) -> Entries:
    for number, line in lines(file):
        found = line.split()
        if len(found) != 6:
            raise _misfit(len(found), 6, file, number)
        try:
            score = float(found[4])
        except ValueError:
            score = math.nan
        if math.isnan(score):
            raise UserError(f'score "{found[4]}" is not a number', where=f"{file}:{number}", mend="Mend the score.")
        yield number, found[0], found[2], score


def _top(file: Path) -> Entries:
    for number, line in lines(file):
        found = line.split("\t")
        if len(found) != 4:
            raise _misfit(len(found), 4, file, number)
        yield number, found[0].strip(), found[1].strip(), 0.0


def _triples(file: Path) -> Entries:
    for number, line in lines(file):
        found = line.split()
        if len(found) != 3:
            raise _misfit(len(found), 3, file, number)
        yield number, found[0], found[2], 0.0


def _misfit(found: int, wanted: int, file: Path, number: int) -> UserError:
    return UserError(
        f"{found} {'column' if found == 1 else 'columns'} where there should be {wanted}",
        where=f"{file}:{number}",
        mend=FORMS,
    )
