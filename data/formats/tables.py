"""Tables with columns of several usual names, row by row, into texts and judgments: Parquet files and the hub's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data.collection import Collection, Qrels
from data.errors import UserError
from data.formats.assemble import Judgments, Scores, Texts, assembled
from data.formats.files import identifier, kind, string, titled

Row = dict[str, Any]

DOC_ID = ("_id", "doc_id", "docid", "corpus-id", "corpus_id", "id")
QUERY_ID = ("_id", "query_id", "query-id", "qid", "id")
TEXT = ("text", "contents", "passage", "query")
OF_QUERY = ("query-id", "query_id", "qid")
OF_DOC = ("corpus-id", "corpus_id", "doc_id", "docid", "pid")
RELEVANCE = ("score", "relevance", "label")

QUERY = ("query", "anchor", "question", "sentence1")
POSITIVE = ("positive", "answer", "pos", "passage", "document", "response", "sentence2")
SCORES = ("scores", "score", "labels", "label", "margin")
NEGATIVE = "neg"  # what the names of such columns begin with


log = logging.getLogger(__name__)


def add_texts(texts: Texts, rows: Iterable[Row], source: str) -> Texts:
    """Add a table of texts: an id, a text and, if there is one, a title."""
    texts.begin(source)
    names = QUERY_ID if texts.kind == "query" else DOC_ID
    for number, row in enumerate(rows, 1):
        where = f"{source}:{number}"
        id_, text = _column(row, names, where), _column(row, TEXT, where)
        texts.add(identifier(row, id_, where), titled(row, where, text), number)
    texts.end("row")
    return texts


def judged(rows: Iterable[Row], source: str, queries: Texts, documents: Texts) -> Qrels:
    """A table of judgments: the ids of query and document and a relevance, 1 where there is none."""
    judgments = Judgments(source, queries, documents)
    for number, row in enumerate(rows, 1):
        where = f"{source}:{number}"
        query, document = _column(row, OF_QUERY, where), _column(row, OF_DOC, where)
        ids = identifier(row, query, where), identifier(row, document, where)
        judgments.add(*ids, _relevance(row, where), number)
    return judgments.qrels


def of_pairs(splits: Mapping[str, Iterable[Row]], source: str) -> Collection:
    """Tables in the style of sentence-transformers: the texts themselves, whose ids are made up.

    A row holds a query and a positive, and negatives in columns whose names begin with "neg", a text or a list of
    texts each; or a query, a document and a `label` (or `score`) of 0 or 1. Equal texts are one document, or query.
    Negatives are judged 0, unless another row judges the same pair above it. A number beside negatives, or a list
    of them (`score`, `scores`, `label`, `labels`, `margin`), is what a teacher has said: the scores of the positive and
    of each negative; or, where it is one fewer, how much higher than each negative it scores the positive, whose score
    is 0 then.
    """
    documents, queries = Texts("doc"), Texts("query")
    scores = Scores(source, queries, documents)
    found: dict[str, dict[tuple[str, str], tuple[int, int]]] = {}
    for split, rows in splits.items():
        place = f"{source}, {split}"
        documents.begin(place)
        queries.begin(place)
        pairs = found[split] = {}
        for number, row in enumerate(rows, 1):
            where = f"{place}:{number}"
            query, judged_texts = _pair(row, where)
            said = _scores(row, len(judged_texts), where)
            for place_in_row, (text, relevance) in enumerate(judged_texts):
                pair = queries.add_text(query, number), documents.add_text(text, number)
                if said:
                    scores.add(*pair, said[place_in_row])
                if pair not in pairs or pairs[pair][0] < relevance:
                    pairs[pair] = relevance, number
    qrels = {}
    for split, pairs in found.items():
        judgments = Judgments(f"{source}, {split}", queries, documents)
        for (query, document), (relevance, number) in pairs.items():
            judgments.add(query, document, relevance, number)
        qrels[split] = judgments.qrels
    return assembled(documents, queries, qrels, scores.table)


def _pair(row: Row, where: str) -> tuple[str, list[tuple[str, int]]]:
    """The query of a row, and its documents with their relevance."""
    query, positive = _column(row, QUERY, where), _column(row, POSITIVE, where)
    negatives = _negatives(row)
    documents = [(string(row, positive, where), 1 if negatives else _relevance(row, where))]
    for name in negatives:
        values = row[name] if isinstance(row[name], list) else [row[name]]
        documents += [(string({name: value}, name, where), 0) for value in values if value is not None]
    return string(row, query, where), documents


def _negatives(row: Row) -> list[str]:
    return [name for name in row if name.startswith(NEGATIVE)]


def _scores(row: Row, documents: int, where: str) -> list[float]:
    """What a teacher has said of each document of a row, the positive first; empty where it has said nothing."""
    name = next((name for name in SCORES if name in row), None)
    if name is None or not _negatives(row):
        return []
    values = row[name] if isinstance(row[name], list) else [row[name]]
    if any(isinstance(value, bool) or not isinstance(value, int | float) or value != value for value in values):
        what = f"{name} is neither a number nor a list of numbers"
        raise UserError(what, where=where, mend="Mend it, or rename the column.")
    if len(values) == documents:
        return [float(value) for value in values]
    if len(values) == documents - 1:
        return [0.0, *(-float(value) for value in values)]
    raise UserError(
        f"{name} has {len(values)} number(s) for a positive and {documents - 1} negative(s)",
        where=where,
        mend=f"Give {documents} scores, the positive's first, or {documents - 1} margins.",
    )


def _relevance(row: Row, where: str) -> int:
    name = next((name for name in RELEVANCE if name in row), None)
    value = 1 if name is None else row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        shown = value if isinstance(value, int | float) else kind(value)
        raise UserError(f"{name} {shown} is not a whole number", where=where, mend="Mend the relevance.")
    return int(value)


def _column(row: Row, names: tuple[str, ...], where: str) -> str:
    """The first of these columns that there is."""
    for name in names:
        if name in row:
            return name
    there = ", ".join(f'"{name}"' for name in row) or "none"
    raise UserError(
        f"no column is named {' or '.join(names)} (there are: {there})",
        where=where,
        mend="Rename the one that is meant.",
    )


def rows_of(batches: Iterable[Any]) -> Iterator[Row]:
    """The rows of Arrow record batches."""
    for batch in batches:
        yield from batch.to_pylist()
