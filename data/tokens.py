"""Token shards: every text of a collection tokenized once, memory-mapped and addressed by row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.arrow import read_arrow
from data.collection import Collection
from data.errors import UserError
from data.sharded import Shard, run_shards
from data.store import Json, Stage, Store, verify

VERSION = 1
SHARD_ROWS = 32_768


class TokenShards:
    """The token ids of all documents, or all queries, by row.

    Nothing is read but the lengths until rows are asked for. Raises UserError if a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        verify(self.folder)
        stats = json.loads((self.folder / "stats.json").read_text(encoding="utf-8"))
        self.max_tokens: int = stats["max_tokens"]
        self.truncated: int = stats["truncated"]
        self._shard_rows: int = stats["shard_rows"]
        self._values: list[npt.NDArray[np.int32]] = []
        self._offsets: list[npt.NDArray[np.int32]] = []
        for shard in range(stats["shards"]):
            ids = read_arrow(Shard(self.folder, shard).path)["input_ids"].chunk(0)
            self._values.append(_view(ids.values))
            self._offsets.append(_view(ids.offsets))
        self._lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets])

    def __reduce__(self) -> tuple[type[TokenShards], tuple[Path]]:
        return TokenShards, (self.folder,)  # travels as the path that it is opened from

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row, special tokens counted: (N,)."""
        return self._lengths

    def take(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> list[npt.NDArray[np.int32]]:
        """The token ids of each of `rows`, as read-only views into the mapped files."""
        taken = []
        for row in np.asarray(rows, np.int64).tolist():
            if not 0 <= row < len(self):
                raise IndexError(f"row {row} of {len(self)}")
            shard, local = divmod(row, self._shard_rows)
            start, end = self._offsets[shard][local : local + 2]
            taken.append(self._values[shard][start:end])
        return taken


def tokenize(
    store: Store,
    collection: Collection,
    field: Literal["documents", "queries"],
    tokenizer_folder: str | Path,
    tokenizer_fingerprint: str,
    max_tokens: int,
    connect: Callable[[], object] | None = None,
    *,
    shard_rows: int = SHARD_ROWS,
    concurrency: int | None = None,
    on_shard: Callable[[int, int], None] | None = None,
) -> TokenShards:
    """Tokenize every text of one field, or reuse what is there; a killed call goes on at the next shard.

    Texts are cut to `max_tokens`, special tokens counted. `connect` connects to Ray, whose workers take one CPU each
    (see `run_shards`); without it, or if there is but one shard, this process does the work on all its cores.
    Raises UserError if the folder holds no fast tokenizer or `max_tokens` leaves no room for text.
    """
    stage = tokens_stage(store, collection, field, tokenizer_fingerprint, max_tokens, shard_rows)
    arguments = {
        "table": collection.file(field),
        "tokenizer_folder": Path(tokenizer_folder).absolute(),
        "max_tokens": max_tokens,
        "shard_rows": shard_rows,
    }
    rows = getattr(collection, field).num_rows

    def make(partial: Path) -> None:
        shards = [Shard(partial, number) for number in range(math.ceil(rows / shard_rows))]
        # A single shard is made in this process: a Ray worker would take as long, and its start comes on top.
        elsewhere = connect if len(shards) > 1 else None
        run_shards(shards, Tokenize, arguments, concurrency=concurrency, on_shard=on_shard, connect=elsewhere)
        metadata = [read_arrow(shard.path).schema.metadata for shard in shards]
        truncated = sum(int(entry[b"truncated"]) for entry in metadata)
        stats = {"shards": len(shards), "shard_rows": shard_rows, "max_tokens": max_tokens, "truncated": truncated}
        (partial / "stats.json").write_text(json.dumps(stats), encoding="utf-8")

    return TokenShards(stage.build(make))


def tokens_stage(
    store: Store,
    collection: Collection,
    field: Literal["documents", "queries"],
    tokenizer_fingerprint: str,
    max_tokens: int,
    shard_rows: int = SHARD_ROWS,
) -> Stage:
    """Where the token shards of one field are kept."""
    inputs: dict[str, Json] = {
        "texts": collection.parts[field],
        "tokenizer": tokenizer_fingerprint,
        "max_tokens": max_tokens,
        "shard_rows": shard_rows,
    }
    return store.stage("tokens", VERSION, inputs)


class Tokenize:
    """The worker: a shard of `shard_rows` texts → a table with one column of token ids."""

    def __init__(self, table: Path, tokenizer_folder: Path, max_tokens: int, shard_rows: int) -> None:
        if not tokenizer_folder.is_dir():
            raise UserError("no such folder with a tokenizer", where=str(tokenizer_folder), mend="Mend encoder.model.")
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"no tokenizer can be loaded: {str(error).splitlines()[0]}",
                where=str(tokenizer_folder),
                mend="Add the files of the tokenizer, tokenizer.json above all.",
            ) from error
        if not tokenizer.is_fast:
            raise UserError("the tokenizer has no fast form", where=str(tokenizer_folder), mend="Add a tokenizer.json.")
        if max_tokens <= (special := tokenizer.num_special_tokens_to_add()):
            raise UserError(
                f"{max_tokens} tokens leave no room for text beside the {special} special ones", mend="Raise the limit."
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # not set, it warns of every process started later
        # The Rust tokenizer itself, without transformers' conversion of each result: 1.4 times the texts a second.
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
        self._tokenizer.no_padding()
        self._texts, self._shard_rows = read_arrow(table)["text"], shard_rows

    def __call__(self, shard: Shard) -> pa.Table:
        texts = self._texts.slice(shard.number * self._shard_rows, self._shard_rows).to_pylist()
        encodings = self._tokenizer.encode_batch_fast(texts)
        ids = [encoding.ids for encoding in encodings]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        values = np.fromiter(chain.from_iterable(ids), np.int32, count=offsets[-1])
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))
        truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        return pa.table({"input_ids": column}).replace_schema_metadata({"truncated": str(truncated)})


def _view(numbers: Any) -> Any:
    """An Arrow array of numbers as numpy sees it, nothing copied; `to_numpy` would import pandas, 0.3 s."""
    return np.from_dlpack(numbers)
