"""What came of the numbers that an experiment expects, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.report.wording import signed
from orchestrator.reproduce import Check, summary


def show(
    checks: Sequence[Check], environment: Mapping[str, str], changed: Sequence[str], console: Console | None = None
) -> None:
    """Print each number beside what was expected, and what has to be known of the run to judge it.

    Args:
        environment: where they were found: "machine", "torch".
        changed: settings that are not those of the experiment's file.
    """
    console = console or Console(highlight=False)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    settings = ("setting",) if any(check.setting for check in checks) else ()
    for column in (*settings, "row", "number"):
        shown.add_column(column)
    for column in ("expected", "tolerance", "found", "difference"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column("source", overflow="fold")
    for check in checks:
        style = "bold red" if check.moved else ""
        shown.add_row(
            *([Text(check.setting)] if settings else []),
            Text(check.row),
            Text(check.what),
            f"{check.expected:.4f}",
            f"±{check.tolerance:g}",
            "none" if check.found is None else f"{check.found:.4f}",
            "" if check.found is None else signed(check.found - check.expected),
            Text("MOVED" if check.moved else "ok", style=style),
            Text(check.source),
        )
    soft = not console.is_terminal
    if soft:
        console.width = 200 if settings else 160
    console.print(shown)
    console.print()
    if changed:
        said = "The experiment was changed, so these need not be its numbers: "
        console.print(Text(said + " ".join(f"--set {each}" for each in changed)), soft_wrap=soft)
    here = f"Here: {environment.get('machine', '?')}, torch {environment.get('torch', '?')}."
    console.print(Text(f"{summary(checks)}. {here}"), soft_wrap=soft)
