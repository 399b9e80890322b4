"""A folder of Parquet: corpus.parquet, queries.parquet and qrels/<split>.parquet, in the columns of BEIR."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data.collection import Collection
from data.errors import UserError
from data.formats.assemble import Texts, assembled
from data.formats.files import digests, folder_at, missing
from data.formats.tables import Row, add_texts, judged, rows_of
from data.store import Json

LAYOUT = "A folder of Parquet has corpus.parquet, queries.parquet and qrels/<split>.parquet."


def parquet_sources(path: str, splits: tuple[str, ...]) -> dict[str, Json]:
    """The files of the folder, with their checksums. Raises UserError where one is missing."""
    return digests(path, _files(path))


def read_parquet(path: str | Path, splits: tuple[str, ...] = ()) -> Collection:
    """Parse the files, all splits; a document's text is its title, a blank and its text, stripped.

    Raises UserError, naming file and row, for what does not fit the format.
    """
    corpus, query_file, *split_files = _files(path)
    documents = add_texts(Texts("doc"), _rows(corpus), str(corpus))
    queries = add_texts(Texts("query"), _rows(query_file), str(query_file))
    return assembled(
        documents, queries, {file.stem: judged(_rows(file), str(file), queries, documents) for file in split_files}
    )


def _rows(file: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            yield from rows_of(opened.iter_batches())
    except pa.ArrowInvalid as error:
        raise UserError(f"this is no Parquet file: {error}", where=str(file), mend="Write it again.") from None


def _files(path: str | Path) -> list[Path]:
    """Corpus, queries, then the judgments of each split by name."""
    folder = folder_at(path)
    files = [folder / "corpus.parquet", folder / "queries.parquet"]
    for file in files:
        if not file.is_file():
            raise missing(folder, file.name, LAYOUT)
    if not (folder / "qrels").is_dir() or not (splits := sorted((folder / "qrels").glob("*.parquet"))):
        raise missing(folder, "qrels/<split>.parquet", LAYOUT)
    return files + splits
