"""The verbs `stillhouse store`: what is in the store, whether it is sound, what may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli_output import AsJson, Exit, print_json

if TYPE_CHECKING:
    from data.care import Entry

app = typer.Typer(help="Look after the store: what is in it, whether it is sound, what may go.", no_args_is_help=True)
StoreFolder = Annotated[str, typer.Option("--store", metavar="FOLDER", help="The store, or its URI.")]


@app.command()
def ls(store: StoreFolder = ".stillhouse", as_json: AsJson = False) -> None:
    """List what the stages made: how large, when last used, how long it took to make."""
    from data import Store
    from data.care import entries

    found = entries(Store(store))
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    _show(found)


@app.command()
def verify(store: StoreFolder = ".stillhouse") -> None:
    """Compute every checksum; status 2 where a file is not what was written."""
    from data import Store
    from data.care import damaged, entries

    kept = Store(store)
    found = entries(kept)
    errors = [error for _, error in damaged(kept, found)]
    for error in errors:
        typer.echo(str(error), err=True)
    whole = sum(entry.finished for entry in found)
    typer.echo(f"{whole - len(errors):,} of {whole:,} are what was written")
    if errors:
        raise typer.Exit(Exit.INPUT)


@app.command()
def gc(
    store: StoreFolder = ".stillhouse",
    unused_for: Annotated[float, typer.Option(metavar="DAYS", min=0, help="Days without use.")] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it they are only listed.")] = False,
) -> None:
    """Remove what was not used for long; what a report names stays."""
    import time

    from data import Store
    from data.care import entries, remove, unused

    kept = Store(store)
    chosen = unused(kept, entries(kept), time.time() - unused_for * 86_400)
    if yes:
        chosen = remove(kept, chosen)
    _show(chosen)
    typer.echo("removed" if yes else "nothing is removed without --yes")


def _show(found: Sequence[Entry]) -> None:
    from datetime import datetime

    from rich import filesize
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "fingerprint", "size", "made in, s", "last used"):
        table.add_column(column, justify="right" if column in ("size", "made in, s") else "left")
    for entry in found:
        made = "not finished" if entry.seconds is None else f"{entry.seconds:,.1f}"
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.stage, entry.fingerprint, filesize.decimal(entry.bytes), made, used)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{len(found):,} outputs, {filesize.decimal(sum(entry.bytes for entry in found))}")
