"""The report of a comparison: on a terminal, as Markdown, as a LaTeX table, as one HTML page."""

from __future__ import annotations

import json
import os
from pathlib import Path

from orchestrator.records import Comparison, to_json


def write(comparison: Comparison, folder: Path) -> Path:
    """Write report.html, report.md, report.tex and comparison.json into `folder`, each at once or not at all; the path
    of the page.
    """
    from orchestrator.report import html, latex, markdown

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "comparison.json", json.dumps(to_json(comparison), indent=1, ensure_ascii=False) + "\n")
    _write(folder / "report.md", markdown.page(comparison))
    _write(folder / "report.tex", latex.page(comparison))
    return _write(folder / "report.html", html.page(comparison))


def _write(path: Path, text: str) -> Path:
    """Under a temporary name, then renamed: a reader never meets half a file."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
