"""What every verb of the command answers with: exit statuses, and JSON on request."""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Exit(IntEnum):
    """Exit statuses."""

    DONE = 0
    FAILED = 1
    INPUT = 2


def print_json(value: Any) -> None:
    """Print a value that JSON can carry, but for sets and the like."""

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, frozenset | set) else str(value)

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=plain))
