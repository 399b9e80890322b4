"""What a collection holds, and what of it bites: for people, before anything is trained on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.collection import Collection, Qrels, Rows
from data.tokens import TokenShards

SAMPLE = 3


@dataclass(frozen=True)
class Side:
    """Documents or queries: how many, the tokens in them (least, median, most; cut at `max_tokens`), and how many are
    cut, empty, or repeat another.
    """

    texts: int
    tokens: tuple[int, float, int]
    max_tokens: int
    truncated: int
    empty: int
    duplicates: int


@dataclass(frozen=True)
class Split:
    """Judgments of a split: its queries, judgments, those above 0, and of a query the most of these."""

    queries: int
    judgments: int
    relevant: int
    most_relevant: int
    without_relevant: int


@dataclass(frozen=True)
class Pair:
    """A query and a document that is relevant for it."""

    split: str
    query_id: str
    query: str
    doc_id: str
    document: str


@dataclass(frozen=True)
class Inspection:
    """What was understood, a sample of it, and warnings in words."""

    documents: Side
    queries: Side
    splits: dict[str, Split]
    sample: list[Pair]
    warnings: list[str]


def inspect(
    collection: Collection, query_tokens: TokenShards, document_tokens: TokenShards, train: str, test: str
) -> Inspection:
    """Look at all texts and judgments. `train` and `test` name the splits that are trained and evaluated on."""
    documents, queries = _side(collection.documents, document_tokens), _side(collection.queries, query_tokens)
    splits = {name: _split(qrels) for name, qrels in collection.qrels.items()}
    warnings = [
        *_of_side("documents", documents),
        *_of_side("queries", queries),
        *(_of_split(name, split) for name, split in splits.items() if split.without_relevant),
        *_dangling(collection),
        *_without_judgments(collection),
        *_generated(collection),
        *_of_both(collection),
        *_leaks(collection, train, test),
    ]
    sample = [pair for name, qrels in collection.qrels.items() for pair in _sample(collection, name, qrels)]
    return Inspection(documents, queries, splits, sample, warnings)


def _side(table: pa.Table, tokens: TokenShards) -> Side:
    texts, lengths = table["text"], tokens.lengths
    empty = pc.sum(pc.equal(texts, "")).as_py() or 0
    distinct = pc.count_distinct(texts).as_py() - (1 if empty else 0)
    return Side(
        texts=len(texts),
        tokens=(int(lengths.min()), float(np.median(lengths)), int(lengths.max())),
        max_tokens=tokens.max_tokens,
        truncated=tokens.truncated,
        empty=empty,
        duplicates=len(texts) - empty - distinct,
    )


def _split(qrels: Qrels) -> Split:
    judged, relevant = np.unique(qrels.query_row), qrels.relevant
    _, counts = np.unique(relevant.query_row, return_counts=True)
    return Split(len(judged), len(qrels), len(relevant), int(counts.max(initial=0)), len(judged) - len(counts))


def _sample(collection: Collection, name: str, qrels: Qrels) -> list[Pair]:
    """Pairs from all over the split."""
    relevant = qrels.relevant
    places = sorted({len(relevant) * part // SAMPLE for part in range(SAMPLE)}) if len(relevant) else []
    queries, documents = collection.queries, collection.documents
    return [
        Pair(
            name,
            queries["query_id"][relevant.query_row[place]].as_py(),
            queries["text"][relevant.query_row[place]].as_py(),
            documents["doc_id"][relevant.doc_row[place]].as_py(),
            documents["text"][relevant.doc_row[place]].as_py(),
        )
        for place in places
    ]


def _of_side(kind: str, side: Side) -> list[str]:
    found = []
    if side.truncated:
        found.append(f"{_share(side.truncated, side.texts, kind)} are cut at {side.max_tokens} tokens")
    if side.empty:
        found.append(f"{_share(side.empty, side.texts, kind)} are empty")
    if side.duplicates:
        apart = ": no search tells them apart, and only one of them may be judged" if kind == "documents" else ""
        found.append(f"{_share(side.duplicates, side.texts, kind)} have the text of another{apart}")
    return found


def _of_split(name: str, split: Split) -> str:
    return f"{_share(split.without_relevant, split.queries, f'queries of {name}')} have no judgment above 0"


def _dangling(collection: Collection) -> list[str]:
    """Judgments of what is not there."""
    found = []
    for name, qrels in collection.qrels.items():
        if dangling := qrels.dangling:
            share = _share(dangling.judgments, len(qrels) + dangling.judgments, f"judgments of {name}")
            found.append(
                f"{share} are of no text here and are left out, the first {dangling.where}: {dangling.what}; trec_eval "
                "counts such relevant documents as never found"
            )
    return found


def _without_judgments(collection: Collection) -> list[str]:
    judged = np.unique(np.concatenate([np.empty(0, np.int64), *(q.query_row for q in collection.qrels.values())]))
    unjudged = collection.queries.num_rows - len(judged)
    return (
        [f"{_share(unjudged, collection.queries.num_rows, 'queries')} have no judgment in any split"]
        if unjudged
        else []
    )


def _generated(collection: Collection) -> list[str]:
    """Queries that nobody has asked."""
    generated = collection.generated
    count = int(generated.sum())
    found = [f"{_share(count, len(generated), 'queries')} are generated: nobody has asked them"] if count else []
    for name, qrels in collection.qrels.items():
        queries = np.unique(qrels.query_row)
        if some := int(generated[queries].sum()):
            found.append(f"{_share(some, len(queries), f'queries of {name}')} are generated")
    return found


def _of_both(collection: Collection) -> list[str]:
    """Queries that are documents."""
    documents, queries = collection.documents, collection.queries
    same_text = pc.and_(pc.is_in(queries["text"], documents["text"]), pc.not_equal(queries["text"], ""))
    count = pc.sum(same_text).as_py() or 0
    if not count:
        return []
    same_id = pc.sum(pc.is_in(queries["query_id"], documents["doc_id"])).as_py() or 0
    ids = f" ({same_id:,} queries have the id of a document)" if same_id else ""
    return [f"{_share(count, len(same_text), 'queries')} are documents, word for word{ids}: a search finds them first"]


def _leaks(collection: Collection, train: str, test: str) -> list[str]:
    """What training sees of the test split."""
    if train not in collection.qrels or test not in collection.qrels or train == test:
        return []
    training, testing = collection.qrels[train], collection.qrels[test]
    found = []
    queries = _distinct_in(collection.queries["text"], testing.query_row, training.query_row)
    if queries:
        found.append(f"{_share(queries, len(np.unique(testing.query_row)), f'queries of {test}')} are in {train} too")
    relevant = np.unique(testing.relevant.doc_row)
    shared = int(np.isin(relevant, training.relevant.doc_row).sum())
    if shared:
        found.append(
            f"{_share(shared, len(relevant), f'relevant documents of {test}')} are relevant in {train} too: what is "
            "learned there helps here"
        )
    return found


def _distinct_in(texts: pa.ChunkedArray, rows: Rows, others: Rows) -> int:
    """How many of `rows` have a text that one of `others` has."""
    mine, theirs = texts.take(pa.array(np.unique(rows))), texts.take(pa.array(np.unique(others)))
    mask: npt.NDArray[np.bool_] = pc.is_in(mine, theirs).to_numpy()
    return int(mask.sum())


def _share(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} {what} ({part / whole:.1%})"
