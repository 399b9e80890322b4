"""Folders in the formats that a collection may come in, all of the same small one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write files under names that may have slashes: `folder({"corpus.tsv": …})`; returns the folder."""

    def write(files: dict[str, str], name: str = "mine") -> Path:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return tmp_path / name

    return write
