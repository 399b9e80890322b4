"""What a collection holds, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data import Inspection

DOCUMENT_CHARACTERS = 160


def show(found: Inspection, console: Console | None = None) -> None:
    """Print counts and lengths, the splits, some pairs, and the warnings."""
    console = console or Console(highlight=False)
    texts = _table("", "texts", "tokens, least", "median", "most", "cut at", "cut", "empty", "repeated")
    for name, side in (("documents", found.documents), ("queries", found.queries)):
        least, median, most = side.tokens
        counts = side.texts, least, round(median), most, side.max_tokens, side.truncated, side.empty, side.duplicates
        texts.add_row(name, *(f"{number:,}" for number in counts))
    splits = _table("split", "queries", "judgments", "above 0", "most a query", "queries without")
    for name, split in found.splits.items():
        numbers = split.queries, split.judgments, split.relevant, split.most_relevant, split.without_relevant
        splits.add_row(Text(name), *(f"{number:,}" for number in numbers))
    console.print(texts)
    console.print()
    console.print(splits)
    for pair in found.sample:
        document = pair.document
        if len(document) > DOCUMENT_CHARACTERS:
            document = f"{document[:DOCUMENT_CHARACTERS].rstrip()} …"
        console.print()
        console.print(Text(f"{pair.split}  {pair.query_id}  {pair.query}"), soft_wrap=True)
        console.print(Text(f"  {pair.doc_id}  {document}"), soft_wrap=True)
    console.print()
    for warning in found.warnings:
        console.print(Text.assemble(("mind  ", "yellow"), warning), soft_wrap=True)
    if not found.warnings:
        console.print("nothing that bites was found")


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None, pad_edge=False, header_style="bold")
    for name in others:
        table.add_column(name, justify="right")
    return table
