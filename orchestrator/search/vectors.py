"""A corpus of vectors in shards, read a piece at a time: memory holds one piece, however many shards there are."""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

COLUMN = "vector"
PIECE = 1 << 26  # numbers in a piece: 256 MB


@dataclass(frozen=True)
class Stored:
    """A shard in an Arrow file of the store, its numbers from byte `offset` on.

    A task is given this, and maps the file where it runs. To go through Arrow each time would take five times as long.
    """

    path: Path
    shape: tuple[int, int]
    offset: int

    @classmethod
    def of(cls, path: Path) -> Stored:
        """The shard in a finished file."""
        import pyarrow as pa

        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
            column = batch.column(batch.schema.get_field_index(COLUMN))
            numbers = column.values.buffers()[1]
            file.seek(0)
            offset = numbers.address - file.read_buffer(file.size()).address
        return cls(path, (len(column), column.type.list_size), offset)

    def __len__(self) -> int:
        return self.shape[0]

    def open(self) -> Floats:
        """Its vectors (N, D), memory-mapped."""
        with self.path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(content, np.float32, math.prod(self.shape), self.offset).reshape(self.shape)

    def read(self, to: Floats) -> None:
        """Copy the vectors to an array of their shape."""
        left = memoryview(to).cast("B")  # type: ignore[arg-type]
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                count = file.readinto(left)
                if not count:
                    raise EOFError(f"{self.path} ends before its vectors do")
                left = left[count:]


def table(vectors: Floats) -> pa.Table:
    """The table that such a file holds."""
    import pyarrow as pa

    numbers = pa.array(vectors.ravel(), pa.float32())
    return pa.table({COLUMN: pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])})


Shard: TypeAlias = "Floats | Stored"


def opened(shard: Shard) -> Floats:
    """The vectors of a shard, (N, D)."""
    return shard.open() if isinstance(shard, Stored) else np.ascontiguousarray(shard, dtype=np.float32)


@dataclass(frozen=True)
class Part:
    """Neighbouring shards of a corpus; `starts` holds the row of each one's first vector in the whole."""

    shards: tuple[Shard, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def pieces(self, threads: int = 1) -> Iterator[tuple[int, Floats]]:
        """The vectors in order, in pieces, each with its first row in the whole.

        A piece is small shards copied together, up to PIECE numbers, or one shard that is as large. faiss has to start
        its selection of the best anew in each, so pieces should be large. The next piece takes over the buffer.
        """
        buffer: Floats | None = None
        for first, shards in self._groups():
            if len(shards) == 1:
                yield first, opened(shards[0])  # mapped, not copied: its size does not matter
                continue
            ends = list(itertools.accumulate(len(shard) for shard in shards))
            if buffer is None:
                dimension = shards[0].shape[1]
                buffer = np.empty((min(len(self), PIECE // dimension), dimension), np.float32)
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(_copy, shards, (buffer[end - len(s) : end] for s, end in zip(shards, ends, strict=True))))
            yield first, buffer[: ends[-1]]

    def taken(self, rows: Rows) -> Floats:
        """The vectors (N, D) of rows of the whole, which are in order: of each shard only what is asked for is read."""
        taken = np.empty((len(rows), self.shards[0].shape[1]), np.float32)
        first, last = np.searchsorted(self.starts, [rows[0], rows[-1]], side="right") - 1
        ends = np.searchsorted(rows, self.starts[first + 1 : last + 1])
        for shard, (start, end) in enumerate(itertools.pairwise([0, *ends.tolist(), len(rows)]), first):
            if start < end:
                here = rows[start:end] - self.starts[shard]
                np.take(opened(self.shards[shard]), here, axis=0, out=taken[start:end], mode="clip")
        return taken

    def _groups(self) -> Iterator[tuple[int, list[Shard]]]:
        """Runs of neighbouring shards that fit a piece together; one that is larger stands alone."""
        group: list[Shard] = []
        first, numbers = 0, 0
        for start, shard in zip(self.starts, self.shards, strict=True):
            size = math.prod(shard.shape)
            if group and numbers + size > PIECE:
                yield first, group
                group, numbers = [], 0
            if not group:
                first = start
            group.append(shard)
            numbers += size
        if group:
            yield first, group


def _copy(shard: Shard, to: Floats) -> None:
    if isinstance(shard, Stored):
        shard.read(to)
    else:
        to[:] = shard


def parts(shards: Sequence[Shard], count: int) -> list[Part]:
    """The corpus in at most `count` parts of about equal size; empty shards are left out."""
    starts = itertools.accumulate((len(shard) for shard in shards), initial=0)
    placed = [(start, shard) for start, shard in zip(starts, shards, strict=False) if len(shard)]
    size = math.ceil(sum(len(shard) for _, shard in placed) / count)
    cut: dict[int, list[tuple[int, Shard]]] = {}
    for start, shard in placed:
        cut.setdefault((start + len(shard) // 2) // size, []).append((start, shard))
    return [Part(tuple(shard for _, shard in group), tuple(start for start, _ in group)) for group in cut.values()]
