"""Collections of the catalogue ir_datasets, by id: documents of `msmarco-passage`, splits `msmarco-passage/train` ….

A split is named by what follows the id of the collection ("train", "dev/small"), which is how `train_split` and
`test_split` name it. ir_datasets downloads what is asked for, and says where a licence must be agreed to by hand.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data.collection import Collection
from data.errors import UserError
from data.formats.assemble import Judgments, Texts, assembled
from data.formats.files import Titled, without_blanks
from data.store import Json


def irds_sources(path: str, splits: tuple[str, ...]) -> dict[str, Json]:
    """The id, the splits and the version of the catalogue, whose files have checksums of their own."""
    try:
        return {"id": path, "splits": splits, "ir_datasets": version("ir_datasets")}
    except PackageNotFoundError:
        raise UserError(
            "ir_datasets is not installed", where="collection.format", mend="pip install 'stillhouse[ir_datasets]'."
        ) from None


def read_irds(path: str, splits: tuple[str, ...] = ()) -> Collection:
    """Load documents, and queries and judgments of the wanted splits; those that there are not are left out.

    The text of a document or query is what ir_datasets calls its default text. Raises UserError where there is no such
    collection, where it cannot be downloaded, and where a split judges what is not there.
    """
    try:
        return _read(path, splits)
    except (RuntimeError, OSError) as error:  # what it raises where no source of a download answers
        raise UserError(
            f'ir_datasets cannot read "{path}": {error.args[0] if error.args else error}',
            where="collection.path",
            mend="Look at what it printed above; what it has once downloaded it reads without a network.",
        ) from None


def _read(path: str, splits: tuple[str, ...]) -> Collection:
    source = _load(path)
    if source is None or not source.has_docs():
        raise UserError(
            f'ir_datasets has no documents under the id "{path}"',
            where="collection.path",
            mend="Its ids are listed at https://ir-datasets.com.",
        )
    documents, queries = Texts("doc"), Texts("query")
    documents.begin(path)
    for number, document in enumerate(source.docs_iter(), 1):
        documents.add(without_blanks(document.doc_id, "doc_id", f"{path}:{number}"), _text(document), number)
    documents.end("document")
    qrels = {}
    for split in splits:
        name = f"{path}/{split}"
        part = _load(name)
        if part is None or not (part.has_queries() and part.has_qrels()):
            continue
        queries.begin(name)
        for number, query in enumerate(part.queries_iter(), 1):
            queries.add_again(
                without_blanks(query.query_id, "query_id", f"{name}:{number}"), query.default_text(), number
            )
        judgments = Judgments(name, queries, documents)
        for number, judgment in enumerate(part.qrels_iter(), 1):
            judgments.add(judgment.query_id, judgment.doc_id, int(judgment.relevance), number)
        qrels[split] = judgments.qrels
    return assembled(documents, queries, qrels)


def _text(document: Any) -> Titled:
    """All of a document that is text, as the data set joins it."""
    return Titled.of(document.default_text(), getattr(document, "title", None) or "")


def _load(name: str) -> Any:
    """The data set of this id, None where the catalogue has none."""
    import ir_datasets

    try:
        return ir_datasets.load(name)
    except KeyError:
        return None
