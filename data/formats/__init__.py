"""The formats that a collection may come in. A new one is a module with two functions and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.collection import Collection
from data.formats.beir import beir_files, read_beir


class Format(NamedTuple):
    """`files(path)` lists what is read, for the fingerprint; `read(path)` parses it. Both raise UserError."""

    files: Callable[[Path], list[Path]]
    read: Callable[[Path], Collection]


FORMATS = {"beir": Format(beir_files, read_beir)}
