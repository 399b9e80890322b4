"""A folder in the forms of TREC: corpus.<form>, and for every split topics.<split>.<form> and qrels.<split>.txt.

All plain or with .gz. The corpus is .tsv (id, text), .jsonl (`docid` or `id`, `contents` or `text`, and `title`), or
.trec (<DOC> with <DOCNO>); topics are .tsv (id, text) or .trec or .txt (<top> with <num> and <title>).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

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
    names,
    records,
    root,
    titled,
    whole,
    without_blanks,
)
from data.store import Json

LAYOUT = (
    "A TREC folder has corpus.tsv, .jsonl or .trec, and for a split topics.<split>.tsv, .trec or .txt and "
    "qrels.<split>.txt, each plain or with .gz."
)
CORPUS, TOPICS = (".tsv", ".jsonl", ".trec"), (".tsv", ".trec", ".txt")
OPENS, FIELD, TAG = re.compile(r"<(\w+)>"), re.compile(r"^\s*<\w+>", re.MULTILINE), re.compile(r"</?\w[^<>]*>")

Entries = Iterator[tuple[int, str, str]]  # line, id, text


def trec_sources(path: str, splits: tuple[str, ...]) -> dict[str, Json]:
    """The files of a TREC folder, with their checksums. Raises UserError where one is missing, or there twice."""
    corpus, parts = _files(root(path))
    return digests(path, [corpus, *(file for pair in parts.values() for file in pair)])


def read_trec(path: str | Path, splits: tuple[str, ...] = ()) -> Collection:
    """Parse a TREC folder, all its splits; a topic's text is its title.

    Two splits may share topics. Raises UserError, naming file and line, for what does not fit the format.
    """
    corpus, parts = _files(root(path))
    documents, queries = Texts("doc"), Texts("query")
    documents.begin(corpus)
    for number, id_, text in _texts(corpus, _documents):
        documents.add(id_, text, number)
    documents.end("document")
    for topics, _ in parts.values():
        queries.begin(topics)
        for number, id_, text in _texts(topics, _topics):
            queries.add_again(id_, text, number)
    qrels = {split: read_qrels(judged, queries, documents) for split, (_, judged) in parts.items()}
    return assembled(documents, queries, qrels)


def read_qrels(file: Source, queries: Texts, documents: Texts) -> Qrels:
    """Judgments as trec_eval reads them: query, iteration (not read), document, relevance, separated by blanks."""
    judgments = Judgments(file, queries, documents)
    for number, line in lines(file):
        found = line.split()
        if len(found) != 4:
            raise UserError(
                f"{len(found)} columns where there should be 4",
                where=f"{file}:{number}",
                mend="A line is: query, iteration, document, relevance, separated by blanks.",
            )
        value = whole(found[3])
        if value is None:
            raise UserError(
                f'relevance "{found[3]}" is not a whole number of 32 bits',
                where=f"{file}:{number}",
                mend="Mend the relevance.",
            )
        judgments.add(found[0], found[2], value, number)
    return judgments.qrels


def read_tsv(file: Source, columns: tuple[str, str] = ("id", "text")) -> Entries:
    """(line, id, text) of a file of two columns, separated by a tab."""
    for number, line in lines(file):
        where = f"{file}:{number}"
        id_, text = cells(line, columns, where)
        yield number, without_blanks(id_, columns[0], where), text


def _texts(file: Source, tagged: Callable[[Source], Entries]) -> Entries:
    read = {".tsv": read_tsv, ".jsonl": _json}.get(Path(file.name.removesuffix(".gz")).suffix, tagged)
    return read(file)


def _json(file: Source) -> Entries:
    for number, where, value in records(file, '{"docid": …, "contents": …}'):
        id_key = "docid" if "docid" in value or "id" not in value else "id"
        text_key = "contents" if "contents" in value or "text" not in value else "text"
        yield number, identifier(value, id_key, where), titled(value, where, text_key)


def _documents(file: Source) -> Entries:
    """Title or headline, and text, of each <DOC>; tags inside are dropped."""
    for number, fields in _elements(file, "DOC"):
        where = f"{file}:{number}"
        id_ = without_blanks(_field(fields, "DOCNO", where), "DOCNO", where)
        parts = [fields.get(name, "") for name in ("TITLE", "HEADLINE", "TEXT")]
        yield number, id_, " ".join(" ".join(parts).split())


def _topics(file: Source) -> Entries:
    """Number and title of each <top>, whose fields may be left open and begin with "Number:" or "Topic:"."""
    for number, fields in _elements(file, "top"):
        where = f"{file}:{number}"
        id_ = re.sub(r"^Number:\s*", "", _field(fields, "num", where))
        title = re.sub(r"^Topic:\s*", "", _field(fields, "title", where))
        yield number, without_blanks(id_, "num", where), " ".join(title.split())


def _elements(file: Source, tag: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The line at which each element begins, and its fields by name."""
    began, content = 0, list[str]()
    for number, line in lines(file):
        text = line.strip()
        if text == f"<{tag}>":
            if began:
                raise UserError(
                    f"<{tag}> of line {began} is not closed", where=f"{file}:{number}", mend=f"Add </{tag}>."
                )
            began, content = number, []
        elif text == f"</{tag}>":
            if not began:
                raise UserError(f"</{tag}> closes nothing", where=f"{file}:{number}", mend=f"Add <{tag}>.")
            yield began, _fields("\n".join(content))
            began = 0
        elif began:
            content.append(line)
    if began:
        raise UserError(f"<{tag}> is not closed", where=f"{file}:{began}", mend=f"Add </{tag}>.")


def _fields(content: str) -> dict[str, str]:
    """Name → text. A field ends where it is closed or, left open, where the next of its kind begins."""
    fields: dict[str, str] = {}
    position = 0
    while found := OPENS.search(content, position):
        name = found[1]
        closed = content.find(f"</{name}>", found.end())
        following = FIELD.search(content, found.end())
        end = closed if closed >= 0 else following.start() if following else len(content)
        text = " ".join(TAG.sub(" ", content[found.end() : end]).split())
        fields[name] = f"{fields[name]} {text}" if name in fields else text
        position = end + (len(name) + 3 if closed >= 0 else 0)
    return fields


def _field(fields: dict[str, str], name: str, where: str) -> str:
    if name not in fields:
        there = ", ".join(f"<{field}>" for field in fields) or "none"
        raise UserError(f"<{name}> is missing (there are: {there})", where=where, mend="Add it.")
    return fields[name]


def _files(folder: Source) -> tuple[Source, dict[str, tuple[Source, Source]]]:
    """The corpus, and topics and judgments by split."""
    corpus = _one(folder, "corpus", CORPUS)
    judged = [path for path in folder.iterdir() if re.fullmatch(r"qrels\..+\.txt(\.gz)?", path.name)]
    splits = sorted({path.name.removesuffix(".gz").removesuffix(".txt").removeprefix("qrels.") for path in judged})
    if not splits:
        raise missing(folder, "qrels.<split>.txt", LAYOUT)
    return corpus, {
        split: (_one(folder, f"topics.{split}", TOPICS), _one(folder, f"qrels.{split}", (".txt",))) for split in splits
    }


def _one(folder: Source, stem: str, suffixes: tuple[str, ...]) -> Source:
    """The file of this name, whatever its form. Raises UserError where there is none, or more than one."""
    wanted = [f"{stem}{suffix}{packed}" for suffix in suffixes for packed in ("", ".gz")]
    there = [path for name in wanted if (path := folder / name).is_file()]
    if len(there) > 1:
        found = " and ".join(path.name for path in there)
        raise UserError(f"both {found} are there", where=str(folder), mend="Remove the one that is old.")
    if not there:
        raise UserError(
            f"{stem}{'|'.join(suffixes)} is missing (there are: {names(folder)})",
            where=str(folder).rstrip("/"),
            mend=LAYOUT,
        )
    return there[0]
