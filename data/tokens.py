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

TextField = Literal["documents", "queries"]

VERSION = 1
SHARD_ROWS = 32_768
BATCH_ROWS = 2_048  # texts tokenized at once
CHARACTERS = 8  # of a text's beginning, a token; an English one takes 4 to 5


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
    field: TextField,
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
    field: TextField,
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
        tokenizer = fast_tokenizer(tokenizer_folder)
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
        beginning = tokenizer.truncation_side == "right" and _splits_at_blanks(self._tokenizer)
        self._enough = CHARACTERS * max_tokens if beginning else None

    def __call__(self, shard: Shard) -> pa.Table:
        rows = range(shard.number * self._shard_rows, min(len(self._texts), (shard.number + 1) * self._shard_rows))
        lengths: list[int] = []
        values, truncated = [], 0
        for start in rows[::BATCH_ROWS]:  # an encoding takes many times the memory of its ids
            encodings = self._encodings(self._texts.slice(start, min(BATCH_ROWS, rows.stop - start)).to_pylist())
            ids = [encoding.ids for encoding in encodings]
            lengths += map(len, ids)
            values.append(np.fromiter(chain.from_iterable(ids), np.int32))
            truncated += sum(bool(encoding.overflowing) for encoding in encodings)
        offsets = np.cumsum([0, *lengths], dtype=np.int64)
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(values), pa.int32()))
        return pa.table({"input_ids": column}).replace_schema_metadata({"truncated": str(truncated)})

    def _encodings(self, texts: list[str]) -> list[Any]:
        """Those of texts, of which a long one is read no further than it takes to fill the limit."""
        begun = [text if self._enough is None else _beginning(text, self._enough) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(begun)
        left = [row for row, text in enumerate(texts) if len(begun[row]) < len(text) and not encodings[row].overflowing]
        for row, encoding in zip(left, self._tokenizer.encode_batch_fast([texts[row] for row in left]), strict=True):
            encodings[row] = encoding
        return encodings  # type: ignore[no-any-return]


def fast_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, as transformers loads it. Raises UserError where it has no fast one."""
    if not folder.is_dir():
        raise UserError("no such folder with a tokenizer", where=str(folder), mend="Mend encoder.model.")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer can be loaded: {str(error).splitlines()[0]}",
            where=str(folder),
            mend="Add the files of the tokenizer, tokenizer.json above all.",
        ) from error
    if not tokenizer.is_fast:
        raise UserError("the tokenizer has no fast form", where=str(folder), mend="Add a tokenizer.json.")
    return tokenizer


def _beginning(text: str, characters: int) -> str:
    """Whole words of a text, up to so many characters."""
    end = text.rfind(" ", 0, characters + 1) if len(text) > characters else -1
    return text[:end] if end > 0 else text


def _splits_at_blanks(tokenizer: Any) -> bool:
    """Whether no token reaches over a blank, so that the first tokens of a text are those of its first words."""
    found = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    steps = found.get("pretokenizers", [found])
    return any(
        step.get("type") in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        or (step.get("type") == "ByteLevel" and step["use_regex"])
        or (step.get("type") == "Metaspace" and step["split"])
        for step in steps
    )


def _view(numbers: Any) -> Any:
    """An Arrow array of numbers as numpy sees it, nothing copied; `to_numpy` would import pandas, 0.3 s."""
    return np.from_dlpack(numbers)
