"""The report of a comparison: on a terminal, as Markdown, as a LaTeX table, as one HTML page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.records import Comparison, to_json


def write(comparison: Comparison, folder: Path) -> Path:
    """Write report.html, report.md, report.tex and comparison.json into `folder`, each at once or not at all; the path
    of the page.
    """
    from orchestrator.report import html, latex, markdown

    files = {
        "comparison.json": json.dumps(to_json(comparison), indent=1, ensure_ascii=False) + "\n",
        "report.md": markdown.page(comparison),
        "report.tex": latex.page(comparison),
        "report.html": html.page(comparison),
    }
    return write_files(folder, files) / "report.html"


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    """Write each under a temporary name, then rename it: a reader never meets half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        unfinished = folder / f".{name}.{os.getpid()}"
        try:
            unfinished.write_text(text, encoding="utf-8", newline="\n")
            unfinished.replace(folder / name)
        finally:
            unfinished.unlink(missing_ok=True)
    return folder
