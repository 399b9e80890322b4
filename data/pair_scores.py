"""Scores of (query, document) pairs, by row: what a teacher says of the pairs that training meets.

They are made pair by pair, or read from a file that others made. A stage holds the scores of one set of pairs; what an
earlier stage of the same teacher has of them is taken over from there and not made again.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.arrow import numbers, read_arrow, write_arrow
from data.collection import Collection, Rows
from data.errors import UserError
from data.formats.files import identifier, lines, records
from data.store import Json, Stage, Store, file_digest, verify

VERSION = 1
SCORES = "scores.arrow"
Space = Literal["logit", "probability", "cosine", "dot"]
BOUNDS: dict[str, tuple[float, float]] = {"probability": (0.0, 1.0), "cosine": (-1.0, 1.0)}

_BLOCK = 1 << 20  # pairs held back before they are sorted

Values = npt.NDArray[np.float32]


def pairs_of(query_rows: Rows, doc_rows: Rows, n_documents: int) -> Rows:
    """A number for each pair of a query (B,) and one of its documents (B, k): (B, k)."""
    return query_rows[:, None] * n_documents + doc_rows


def distinct_pairs(batches: Iterable[tuple[Rows, Rows]], n_documents: int) -> Rows:
    """The distinct pairs in batches of (queries (B,), documents (B, k)), ascending."""
    seen: list[Rows] = [np.empty(0, np.int64)]
    held = 0
    for query_rows, doc_rows in batches:
        seen.append(pairs_of(query_rows, doc_rows, n_documents).ravel())
        held += seen[-1].size
        if held > _BLOCK + 2 * len(seen[0]):
            seen, held = [np.unique(np.concatenate(seen))], 0
    return np.unique(np.concatenate(seen))


class PairScores:
    """The scores in a finished stage, memory-mapped. Raises UserError if a file is damaged."""

    def __init__(self, folder: Path) -> None:
        verify(folder)
        table = read_arrow(folder / SCORES)
        self.pairs: Rows = numbers(table["pair"])
        self.scores: Values = numbers(table["score"])

    def __len__(self) -> int:
        return len(self.pairs)

    def find(self, pairs: Rows) -> tuple[npt.NDArray[np.bool_], Values]:
        """Which of the pairs are here, and the scores, of any shape; without meaning where a pair is not here."""
        if not len(self.pairs):
            return np.zeros(pairs.shape, np.bool_), np.zeros(pairs.shape, np.float32)
        place = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        return self.pairs[place] == pairs, self.scores[place]

    def take(self, pairs: Rows) -> Values:
        """The scores of pairs, of any shape. Raises KeyError for a pair without one."""
        found, scores = self.find(pairs)
        if not found.all():
            raise KeyError(f"{int((~found).sum()):,} pairs have no score")
        return scores


def scores_stage(store: Store, collection: Collection, teacher: Mapping[str, Json], pairs: Rows) -> Stage:
    """Where the scores of `pairs`, ascending, are kept; `teacher` is what names it."""
    inputs: dict[str, Json] = {
        "teacher": teacher,
        "documents": collection.parts["documents"],
        "queries": collection.parts["queries"],
        "pairs": hashlib.sha256(np.ascontiguousarray(pairs, np.int64).tobytes()).hexdigest(),
    }
    return store.stage("scores", VERSION, inputs)


class Known(NamedTuple):
    """What finished stages of the same teacher have of some pairs: the folders, and the scores by pair."""

    used: dict[Path, int]  # folder → how many scores are taken from it
    pairs: Rows
    scores: Values


def known(stage: Stage, pairs: Rows) -> Known:
    """The scores among `pairs`, ascending, that other finished stages of the same teacher and texts have."""
    missing, used = pairs, {}
    found_pairs, found_scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for folder in stage.alike("pairs"):
        here, scores = PairScores(folder).find(missing)
        if here.any():
            used[folder] = int(here.sum())
            found_pairs.append(missing[here])
            found_scores.append(scores[here])
            missing = missing[~here]
    together = np.concatenate(found_pairs)
    order = np.argsort(together, kind="stable")
    return Known(used, together[order], np.concatenate(found_scores)[order])


def write_scores(folder: Path, pairs: Rows, scores: Values) -> None:
    """Write scores, of pairs in any order, as a stage keeps them."""
    order = np.argsort(pairs, kind="stable")
    write_arrow(pa.table({"pair": pairs[order], "score": scores[order]}).combine_chunks(), folder / SCORES)


def read_scores(store: Store, collection: Collection, path: str | Path, space: Space, pairs: Rows, where: str) -> Path:
    """The folder of the store with the scores that a file gives to `pairs`, ascending.

    The file is a TREC run; lines of two scores and the ids that they are of (relevant score, other score, query,
    relevant document, other document, as of MarginMSE's authors); or JSON lines, of a query, a document and a score, or
    of a query and its scores by document. A pair that comes twice has its last score. Other pairs are passed over.
    Raises UserError, naming `where`, for a path that is no file; naming file and line, for a line of no known form;
    naming the file, for a score that is none of the space and where pairs are missing in it.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{file} is no file", where=where, mend=FORMS)
    stage = scores_stage(store, collection, {"file": file_digest(file), "space": space}, pairs)

    def make(partial: Path) -> None:
        write_scores(
            partial, pairs, _checked(_wanted(_entries(file), collection, pairs), collection, space, pairs, str(file))
        )

    return stage.build(make)


def own_scores(store: Store, collection: Collection, space: Space, pairs: Rows, where: str) -> Path:
    """The same with the scores that the collection's own files give.

    Raises UserError, naming `where`, where these hold none, none of the space, or not all of them.
    """
    scores = collection.scores
    if scores is None:
        raise UserError("the collection has no scores", where=where, mend="Add the path of a file with scores: path: …")
    stage = scores_stage(store, collection, {"collection": collection.parts["scores"], "space": space}, pairs)

    def make(partial: Path) -> None:
        found = np.full(len(pairs), np.nan, np.float32)
        columns = (numbers(scores[name]) for name in ("query_row", "doc_row", "score"))
        query, document, score = columns
        _put(found, pairs, query * collection.documents.num_rows + document, score)
        write_scores(partial, pairs, _checked(found, collection, space, pairs, where))

    return stage.build(make)


def _checked(found: Values, collection: Collection, space: Space, pairs: Rows, where: str) -> Values:
    """The scores, refused where they are none of the space, or where one is missing."""
    low, high = BOUNDS.get(space, (-math.inf, math.inf))
    outside = (found < low) | (found > high)
    if outside.any():
        raise UserError(
            f"{found[outside][0]:g} is no {space}, which lies between {low:g} and {high:g}",
            where=where,
            mend=f"Name the space of these scores: {', '.join(get_args(Space))}.",
        )
    if (missing := np.isnan(found)).any():
        query, document = divmod(int(pairs[missing][0]), collection.documents.num_rows)
        query_id, doc_id = collection.queries["query_id"][query], collection.documents["doc_id"][document]
        raise UserError(
            f"{int(missing.sum()):,} of the {len(pairs):,} pairs that training meets have no score, the first "
            f'query "{query_id}" with document "{doc_id}"',
            where=where,
            mend="Draw the negatives from what is scored (negatives: {source: given} or {source: file, path: …}), and "
            "see that the relevant documents are scored too.",
        )
    return found


def _put(found: Values, pairs: Rows, some: Rows, scores: Values) -> None:
    """Write the scores of some pairs to the places that these have among `pairs`, ascending."""
    place = np.searchsorted(pairs, some)
    hit = place < len(pairs)
    hit[hit] = pairs[place[hit]] == some[hit]
    found[place[hit]] = scores[hit]


FORMS = (
    "A line is of a TREC run (query, Q0, document, rank, score, tag), of MarginMSE's score files (relevant score, "
    'other score, query, relevant document, other document), or JSON: {"query_id": …, "doc_id": …, "score": …} or '
    '{"query_id": …, "scores": {document: score, …}}.'
)
_QUERY, _DOCUMENT, _SCORE = ("query_id", "qid", "query-id"), ("doc_id", "pid", "passage_id", "corpus-id"), ("score",)

Entry = tuple[str, str, float]


def _wanted(entries: Iterator[Entry], collection: Collection, pairs: Rows) -> Values:
    """The scores of `pairs`, NaN where there is none; memory does not grow with the file."""
    query_row = {id_: row for row, id_ in enumerate(collection.queries["query_id"].to_pylist())}
    doc_row = {id_: row for row, id_ in enumerate(collection.documents["doc_id"].to_pylist())}
    found = np.full(len(pairs), np.nan, np.float32)
    n_documents = collection.documents.num_rows
    keys, values = array("q"), array("f")

    def keep() -> None:
        _put(found, pairs, np.array(keys, np.int64), np.array(values, np.float32))
        del keys[:], values[:]

    for query, document, score in entries:
        row, column = query_row.get(query), doc_row.get(document)
        if row is not None and column is not None:
            keys.append(row * n_documents + column)
            values.append(score)
            if len(keys) == _BLOCK:
                keep()
    keep()
    return found


def _entries(file: Path) -> Iterator[Entry]:
    if ".pkl" in file.suffixes or ".pickle" in file.suffixes:
        raise UserError(
            "this is a pickle, which may run any code when it is read",
            where=str(file),
            mend='If you trust it, write for each query a line of JSON: {"query_id": …, "scores": {document: score}}.',
        )
    first = next((line for _, line in lines(file)), None)
    if first is None:
        raise UserError("the file is empty", where=str(file), mend=FORMS)
    if first.lstrip().startswith("{"):
        yield from _of_json(file)
        return
    columns = len(first.split())
    if columns not in (5, 6):
        raise UserError(f"{columns} columns in its first line", where=f"{file}:1", mend=FORMS)
    for number, line in lines(file):
        where, found = f"{file}:{number}", line.split()
        if len(found) != columns:
            raise UserError(f"{len(found)} columns where there were {columns}", where=where, mend=FORMS)
        if columns == 6:
            yield found[0], found[2], _number(found[4], where)
        else:
            relevant, other, query, positive, negative = found
            yield query, positive, _number(relevant, where)
            yield query, negative, _number(other, where)


def _of_json(file: Path) -> Iterator[Entry]:
    for _, where, value in records(file, '{"query_id": …, "doc_id": …, "score": …}'):
        query = identifier(value, _key(value, _QUERY, where), where)
        scores = value.get("scores")
        if isinstance(scores, dict):
            for document, score in scores.items():
                yield query, document, _number(score, where)
        else:
            document = identifier(value, _key(value, _DOCUMENT, where), where)
            yield query, document, _number(value[_key(value, _SCORE, where)], where)


def _key(value: dict[str, Any], names: Sequence[str], where: str) -> str:
    key = next((name for name in names if name in value), None)
    if key is None:
        raise UserError(f'no key "{names[0]}" (there are: {json.dumps(list(value))[1:-1]})', where=where, mend=FORMS)
    return key


def _number(value: object, where: str) -> float:
    try:
        score = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"score {json.dumps(value)} is not a number", where=where, mend="Mend the score.")
    return score
