"""Tevatron's training files: <split>.jsonl, plain or with .gz, and corpus.jsonl where documents are not in them alone.

A line is {"query_id", "query", "positive_passages": [{"docid", "title", "text"}, …], "negative_passages": […]}; one of
the corpus is {"docid", "title", "text"}.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.collection import Collection, Qrels
from data.errors import UserError
from data.formats.assemble import Judgments, Texts, assembled
from data.formats.files import Source, digests, identifier, kind, missing, one_of, records, root, string, titled
from data.store import Json

LAYOUT = "A folder of Tevatron has <split>.jsonl, and corpus.jsonl if it likes, each plain or with .gz."
LINE = '{"query_id": …, "query": …, "positive_passages": […], "negative_passages": […]}'
PASSAGES = {"positive_passages": 1, "negative_passages": 0}


def tevatron_sources(path: str, splits: tuple[str, ...]) -> dict[str, Json]:
    """The files of the folder, with their checksums. Raises UserError where there is none, or one twice."""
    corpus, parts = _files(root(path))
    return digests(path, [*([corpus] if corpus else []), *parts.values()])


def read_tevatron(path: str | Path, splits: tuple[str, ...] = ()) -> Collection:
    """Parse Tevatron's files, all splits. Positives are judged 1 and negatives 0.

    A passage that comes with several queries is one document. Raises UserError, naming file and line, for what does
    not fit the format.
    """
    corpus, parts = _files(root(path))
    documents, queries = Texts("doc"), Texts("query")
    if corpus:
        documents.begin(corpus)
        for number, where, value in records(corpus, '{"docid": …, "text": …}'):
            documents.add(identifier(value, "docid", where), titled(value, where), number)
        documents.end("line of JSON")
    return assembled(documents, queries, {split: _split(file, queries, documents) for split, file in parts.items()})


def _split(file: Source, queries: Texts, documents: Texts) -> Qrels:
    judgments = Judgments(file, queries, documents)
    queries.begin(file)
    documents.begin(file)
    for number, where, value in records(file, LINE):
        query = identifier(value, "query_id", where)
        queries.add_again(query, string(value, "query", where), number)
        for key, relevance in PASSAGES.items():
            ids = [_passage(passage, key, where, documents, number) for passage in _list(value, key, where)]
            for id_ in dict.fromkeys(ids):
                judgments.add(query, id_, relevance, number)
    return judgments.qrels


def _passage(value: Any, key: str, where: str, documents: Texts, number: int) -> str:
    if not isinstance(value, dict):
        raise UserError(
            f"{key} holds a JSON {kind(value)}", where=where, mend='A passage is {"docid": …, "title": …, "text": …}.'
        )
    id_ = identifier(value, "docid", where)
    documents.add_again(id_, titled(value, where), number)
    return id_


def _list(value: dict[str, Any], key: str, where: str) -> list[Any]:
    found = value.get(key, [])
    if not isinstance(found, list):
        raise UserError(f"{key} is a JSON {kind(found)}", where=where, mend="Make it a list of passages.")
    return found


def _files(folder: Source) -> tuple[Source | None, dict[str, Source]]:
    """The corpus, if there is one, and the files of the splits by name."""
    found = {path.name.removesuffix(".gz").removesuffix(".jsonl") for path in folder.iterdir() if _is_jsonl(path)}
    splits = {split: one_of(folder, f"{split}.jsonl", LAYOUT) for split in sorted(found)}
    corpus = splits.pop("corpus", None)
    if not splits:
        raise missing(folder, "<split>.jsonl", LAYOUT)
    return corpus, splits


def _is_jsonl(path: Source) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz"))
