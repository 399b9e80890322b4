"""Tables in Arrow files: written as a single batch where a row shall be one look-up, read by mapping them to memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def write_arrow(table: pa.Table, path: Path) -> None:
    """Write a table in the batches that it has."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_arrow(path: Path) -> pa.Table:
    """The table of a file, mapped: nothing is read but what is asked for."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def mask(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """A column of truth values without nulls, of any number of batches."""
    bytes_ = column.cast(pa.uint8())
    return np.concatenate([np.empty(0, np.uint8), *map(np.from_dlpack, bytes_.chunks)]).astype(np.bool_)


def numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of numbers without nulls, of a single batch, as a read-only view. `to_numpy` would import pandas."""
    return np.from_dlpack(column.chunk(0)) if column.num_chunks else np.empty(0, column.type.to_pandas_dtype())
