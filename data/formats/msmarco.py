"""MS MARCO's own files: collection.tsv, and for every split queries.<split>.tsv and qrels.<split>.tsv; plain or .gz.

Where a split's queries are a part of another's (dev.small of dev), the file of the larger one will do.
"""

from __future__ import annotations

import re
from pathlib import Path

from data.collection import Collection
from data.formats.assemble import Texts, assembled
from data.formats.files import Source, digests, missing, one_of, root
from data.formats.trec import read_qrels, read_tsv
from data.store import Json

LAYOUT = (
    "A folder of MS MARCO has collection.tsv, and for a split queries.<split>.tsv and qrels.<split>.tsv, each plain or "
    "with .gz."
)


def msmarco_sources(path: str, splits: tuple[str, ...]) -> dict[str, Json]:
    """The files that are read, with their checksums. Raises UserError where one is missing, or there twice."""
    corpus, parts = _files(root(path))
    return digests(path, [corpus, *{str(file): file for pair in parts.values() for file in pair}.values()])


def read_msmarco(path: str | Path, splits: tuple[str, ...] = ()) -> Collection:
    """Parse MS MARCO's files, all splits that have judgments.

    Raises UserError, naming file and line, for what does not fit the format.
    """
    corpus, parts = _files(root(path))
    documents, queries = Texts("doc"), Texts("query")
    documents.begin(corpus)
    for number, id_, text in read_tsv(corpus, ("pid", "passage")):
        documents.add(id_, text, number)
    documents.end("passage")
    for file in {str(query_file): query_file for query_file, _ in parts.values()}.values():
        queries.begin(file)
        for number, id_, text in read_tsv(file, ("qid", "query")):
            queries.add_again(id_, text, number)
    return assembled(
        documents, queries, {split: read_qrels(judged, queries, documents) for split, (_, judged) in parts.items()}
    )


def _files(folder: Source) -> tuple[Source, dict[str, tuple[Source, Source]]]:
    """The corpus, and queries and judgments by split."""
    corpus = one_of(folder, "collection.tsv", LAYOUT)
    found = [match for path in folder.iterdir() if (match := re.fullmatch(r"qrels\.(.+)\.tsv(\.gz)?", path.name))]
    if not found:
        raise missing(folder, "qrels.<split>.tsv", LAYOUT)
    parts = {}
    for split in sorted({match[1] for match in found}):
        larger = split.rpartition(".")[0]
        alone = any((folder / f"queries.{split}.tsv{packed}").is_file() for packed in ("", ".gz"))
        queries = one_of(folder, f"queries.{split if alone or not larger else larger}.tsv", LAYOUT)
        parts[split] = queries, one_of(folder, f"qrels.{split}.tsv", LAYOUT)
    return corpus, parts
