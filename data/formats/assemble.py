"""Texts and judgments, put together one by one into a collection; what does not fit is a UserError naming its place."""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_right
from typing import Literal

import numpy as np
import pyarrow as pa

from data.collection import Collection, Dangling, Qrels, collection
from data.errors import UserError
from data.formats.files import Titled

CHUNK_ROWS = 65_536

log = logging.getLogger(__name__)


class Texts:
    """Documents or queries. `source` names the file, or the like, that the texts now come from."""

    def __init__(self, kind: Literal["doc", "query"]) -> None:
        self.rows: dict[str, int] = {}
        self.kind = kind
        self._ids: list[str] = []
        self._texts: list[str] = []
        self._chunks: list[pa.Table] = []
        self._line_of_row = array("q")
        self._title_lengths = array("i")
        self._sources: list[str] = []
        self._first_rows: list[int] = []  # of each source
        self._empty = 0
        self._made_up: dict[str, str] = {}  # text → id

    def __len__(self) -> int:
        return len(self.rows)

    def begin(self, source: object) -> None:
        """From here on texts come from `source`."""
        self._sources.append(str(source))
        self._first_rows.append(len(self))

    def add(self, id_: str, text: str, line: int) -> int:
        """Add a text, stripped, and return its row; a `Titled` one with its title. Raises UserError where the id is
        there already.
        """
        if id_ in self.rows:
            row = self.rows[id_]
            source = self._sources[bisect_right(self._first_rows, row) - 1]
            file = "" if source == self._sources[-1] else f" of {source}"
            raise UserError(
                f'id "{id_}" is there twice, first in line {self._line_of_row[row]}{file}',
                where=f"{self._sources[-1]}:{line}",
                mend="Remove or rename one of them.",
            )
        row = self.rows[id_] = len(self.rows)
        self._title_lengths.append(text.title_length if isinstance(text, Titled) else 0)
        text = text.strip()
        self._empty += not text
        self._line_of_row.append(line)
        self._ids.append(id_)
        self._texts.append(text)
        if len(self._ids) == CHUNK_ROWS:
            self._cut()
        return row

    def add_again(self, id_: str, text: str, line: int) -> int:
        """As `add`, but the same text may come again under its id; another raises UserError."""
        if id_ not in self.rows:
            return self.add(id_, text, line)
        row = self.rows[id_]
        if self._text(row) != text.strip():
            self.add(id_, text, line)  # which refuses it
        return row

    def add_text(self, text: str, line: int) -> str:
        """Add a text without an id, unless it is there already; returns the id that it got: "d0", "q1", …"""
        text = text.strip()
        if text not in self._made_up:
            self._made_up[text] = f"{self.kind[0]}{len(self)}"
            self.add(self._made_up[text], text, line)
        return self._made_up[text]

    def _text(self, row: int) -> str:
        chunk, local = divmod(row, CHUNK_ROWS)
        return str(self._chunks[chunk]["text"][local]) if chunk < len(self._chunks) else self._texts[local]

    def end(self, form: str) -> None:
        """No more comes from this source. Raises UserError, telling the form, if nothing did; warns of empty texts."""
        count = len(self) - self._first_rows[-1]
        if not count:
            raise UserError("the file is empty", where=self._sources[-1], mend=f"It needs at least one {form}.")
        if self._empty:
            log.warning("%s: %s of %s texts are empty", self._sources[-1], f"{self._empty:,}", f"{count:,}")
        self._empty = 0

    def where(self) -> str:
        """The places of all texts, in words."""
        return ", ".join(source.rsplit("/", 1)[-1] for source in self._sources)

    @property
    def table(self) -> pa.Table:
        """`doc_id` or `query_id`, and `text`."""
        if self._ids or not self._chunks:
            self._cut()
        return pa.concat_tables(self._chunks)

    @property
    def titles(self) -> pa.Table | None:
        """How many characters of each text are its title, `length`; None where no text has one."""
        lengths = np.array(self._title_lengths, np.int32)
        return pa.table({"length": lengths}) if lengths.any() else None

    def _cut(self) -> None:
        columns = {f"{self.kind}_id": pa.array(self._ids, pa.string()), "text": pa.array(self._texts, pa.string())}
        self._chunks.append(pa.table(columns))
        self._ids, self._texts = [], []


class Judgments:
    """The judgments of one split, from one source."""

    def __init__(self, source: object, queries: Texts, documents: Texts) -> None:
        self._source, self._queries, self._documents = str(source), queries, documents
        self._line_of_pair: dict[tuple[int, int], int] = {}
        self._relevance = array("i")
        self._dangling: Dangling | None = None

    def add(self, query: str, document: str, relevance: int, line: int) -> None:
        """Add a judgment; one with an unknown id is only counted. Raises UserError where the pair was judged before."""
        where = f"{self._source}:{line}"
        for kind, plural, id_, known in (
            ("query", "queries", query, self._queries),
            ("document", "documents", document, self._documents),
        ):
            if id_ not in known.rows:
                what = f'{kind} "{id_}" is not in {known.where()} ({len(known):,} {plural})'
                first = self._dangling or Dangling(0, what, where)
                self._dangling = first._replace(judgments=first.judgments + 1)
                return
        pair = self._queries.rows[query], self._documents.rows[document]
        if pair in self._line_of_pair:
            raise UserError(
                f'document "{document}" is judged twice for query "{query}", first in line {self._line_of_pair[pair]}',
                where=where,
                mend="Remove one of the two lines.",
            )
        self._line_of_pair[pair] = line
        self._relevance.append(relevance)

    @property
    def qrels(self) -> Qrels:
        """The judgments. Raises UserError where there is none of known ids."""
        if not self._line_of_pair and self._dangling:
            what = f"{self._dangling.what}, and no judgment is of a known query and document"
            raise UserError(what, where=self._dangling.where, mend="Mend the ids.")
        if not self._line_of_pair:
            raise UserError("the split has no judgments", where=self._source, mend="Add some, or remove the file.")
        pairs = np.array(list(self._line_of_pair), np.int64)
        return Qrels(pairs[:, 0].copy(), pairs[:, 1].copy(), np.array(self._relevance, np.int32), self._dangling)


class Scores:
    """What a teacher has said of pairs; of a pair that comes twice the last score counts, and a warning says so."""

    def __init__(self, source: object, queries: Texts, documents: Texts) -> None:
        self._source, self._queries, self._documents = str(source), queries, documents
        self._scores: dict[tuple[int, int], float] = {}
        self._changed = 0

    def add(self, query: str, document: str, score: float) -> None:
        """Add the score of a pair of known ids."""
        pair = self._queries.rows[query], self._documents.rows[document]
        self._changed += self._scores.get(pair, score) != score
        self._scores[pair] = score

    @property
    def table(self) -> pa.Table | None:
        """`query_row`, `doc_row` and `score`; None where there is no score."""
        if not self._scores:
            return None
        if self._changed:
            log.warning("%s: %s scores differ from an earlier one of their pair", self._source, f"{self._changed:,}")
        pairs = np.array(list(self._scores), np.int64)
        scores = np.array(list(self._scores.values()), np.float32)
        return pa.table({"query_row": pairs[:, 0].copy(), "doc_row": pairs[:, 1].copy(), "score": scores})


def assembled(documents: Texts, queries: Texts, qrels: dict[str, Qrels], scores: pa.Table | None = None) -> Collection:
    """The collection of these."""
    return collection(documents.table, queries.table, qrels, scores, documents.titles)
