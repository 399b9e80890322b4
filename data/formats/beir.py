"""The BEIR folder, or a zip archive of it: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, plain or with .gz."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.collection import Collection, Qrels
from data.errors import UserError
from data.formats.assemble import Judgments, Texts, assembled
from data.formats.files import (
    Source,
    cells,
    digests,
    identifier,
    lines,
    missing,
    one_of,
    records,
    root,
    string,
    titled,
    whole,
)
from data.store import Json

LAYOUT = "A BEIR folder has corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each plain or with .gz."
COLUMNS = "query-id", "corpus-id", "score"
HEADER = "<TAB>".join(COLUMNS)


def beir_sources(path: str, splits: tuple[str, ...]) -> dict[str, Json]:
    """The files of a BEIR folder, with their checksums. Raises UserError where one is missing, or there twice."""
    return digests(path, _files(root(path)))


def read_beir(path: str | Path, splits: tuple[str, ...] = ()) -> Collection:
    """Parse a BEIR folder, all its splits. A document's text is its title, a blank and its text, stripped.

    Ids are strings; a whole number in their place is read as one (7 is "7"). A document may be empty: these are counted
    in a warning. Raises UserError, naming file and line, for everything else that does not fit the format.
    """
    corpus, query_file, *split_files = _files(root(path))
    documents = _texts(corpus, Texts("doc"), titled)
    queries = _texts(query_file, Texts("query"), lambda value, where: string(value, "text", where))
    return assembled(documents, queries, {_split(file): _judgments(file, queries, documents) for file in split_files})


def _files(folder: Source) -> list[Source]:
    """Corpus, queries, then the judgments of each split by name."""
    files = [one_of(folder, "corpus.jsonl", LAYOUT), one_of(folder, "queries.jsonl", LAYOUT)]
    qrels = folder / "qrels"
    if not qrels.is_dir():
        raise missing(folder, "qrels", LAYOUT)
    splits = sorted({_split(path) for path in qrels.iterdir() if path.name.endswith((".tsv", ".tsv.gz"))})
    if not splits:
        raise missing(qrels, "<split>.tsv", LAYOUT)
    return files + [one_of(qrels, f"{split}.tsv", LAYOUT) for split in splits]


def _texts(file: Source, texts: Texts, text_of: Callable[[dict[str, Any], str], str]) -> Texts:
    texts.begin(file)
    for number, where, value in records(file, '{"_id": …, "text": …}'):
        texts.add(identifier(value, "_id", where), text_of(value, where), number)
    texts.end("line of JSON")
    return texts


def _judgments(file: Source, queries: Texts, documents: Texts) -> Qrels:
    judgments, header = Judgments(file, queries, documents), True
    for number, line in lines(file):
        where = f"{file}:{number}"
        query, document, score = cells(line, COLUMNS, where)
        value = whole(score)
        if header:
            if value is not None:
                raise UserError("the header is missing", where=where, mend=f"The first line is {HEADER}.")
            header = False
            continue
        if value is None:
            raise UserError(f'score "{score}" is not a whole number of 32 bits', where=where, mend="Mend the score.")
        judgments.add(query, document, value, number)
    return judgments.qrels


def _split(path: Source) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tsv")
