"""Generated queries beside those that people asked: one collection, in which nobody can take one for the other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.collection import GENERATED, Collection, Qrels, Rows, collection, write_parts
from data.errors import UserError


def extended(base: Collection, documents: Rows, texts: pa.Array | pa.ChunkedArray) -> Collection:
    """The collection with generated queries after its own, and with their split.

    A query has the text `texts[i]` for the document of row `documents[i]`, which is relevant for it. One that is made
    for several documents is one query. Its id is "generated:", the id of its first document, a colon and a number.
    Raises UserError where the collection has such queries already.
    """
    refuse_generated(base)
    rows: dict[str, int] = {}
    ids: list[str] = []
    pairs: dict[tuple[int, int], None] = {}
    counts: dict[int, int] = {}
    for document, text in zip(documents.tolist(), texts.to_pylist(), strict=True):
        if text not in rows:
            rows[text] = base.queries.num_rows + len(rows)
            number = counts[document] = counts.get(document, 0) + 1
            ids.append(f"{GENERATED}:{base.documents['doc_id'][document].as_py()}:{number}")
        pairs[rows[text], document] = None
    made = pa.table({"query_id": pa.array(ids, pa.string()), "text": pa.array(list(rows), pa.string())})
    judged = np.array(list(pairs), np.int64).reshape(-1, 2)
    qrels = Qrels(judged[:, 0].copy(), judged[:, 1].copy(), np.ones(len(judged), np.int32))
    queries = pa.concat_tables([base.queries, made])
    known = {"documents": base.parts["documents"]}
    return collection(base.documents, queries, {**base.qrels, GENERATED: qrels}, base.scores, base.titles, known)


def refuse_generated(base: Collection) -> None:
    """Raises UserError where a collection has generated queries, or a split of their name."""
    if GENERATED in base.qrels or base.generated.any():
        what, mend = "the collection holds generated queries already", "Take the one without."
        raise UserError(what, where="collection.path", mend=mend)


def write_extended(base: Collection, extended: Collection, folder: Path) -> None:
    """Write it to a folder of the store; the documents are those of the base, on the disk as well."""
    here = folder / "documents.arrow"
    here.unlink(missing_ok=True)
    try:
        os.link(base.file("documents"), here)
    except OSError:  # a file system without such links, or another one
        shutil.copyfile(base.file("documents"), here)
    write_parts(extended, folder, but="documents")


def generated_alone(extended: Collection, test: str | None = None) -> Collection:
    """The documents and the generated queries, which are its split "train"; with them the split `test`, if it is there,
    so that it is measured by what people asked.
    """
    kept = extended.generated.copy()
    splits = {"train": extended.qrels[GENERATED]}
    if test in extended.qrels and test != "train":
        splits[test] = extended.qrels[test]
        kept[splits[test].query_row] = True
    rows = np.flatnonzero(kept)
    qrels = {
        name: Qrels(np.searchsorted(rows, each.query_row), each.doc_row, each.relevance)
        for name, each in splits.items()
    }
    queries, known = extended.queries.take(pa.array(rows)), {"documents": extended.parts["documents"]}
    return collection(extended.documents, queries, qrels, titles=extended.titles, known=known)
