"""Vectors of texts under an encoder, kept in the store: what mining searches, the evaluation searches too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data import Rows, Shard, Stage, Store, TokenShards, build_together, fingerprint
from data.store import Json
from orchestrator import shards
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.encoder import BiEncoder, Pooling, load_encoder, pad_id
from orchestrator.encoding import Encoding, device
from orchestrator.records import Cost
from orchestrator.search import Stored, table
from orchestrator.search.vectors import Floats

VERSION = 5
SHARD_TEXTS = 1024


@dataclass(frozen=True)
class Model:
    """An encoder as a worker loads it. The fingerprint names all that its vectors depend on but the texts.

    Of two towers it is that of the queries, and `documents` is the other one.
    """

    folder: Path
    fingerprint: str
    pooling: Pooling
    normalize: bool
    layers: tuple[int, ...] | None = None  # those that are kept of the folder's
    documents: Model | None = None

    @property
    def of_documents(self) -> Model:
        """What encodes documents: the same encoder unless there are two towers."""
        return self.documents or self

    def load(self) -> BiEncoder:
        """The encoder, on the CPU."""
        return load_encoder(self.folder, pooling=self.pooling, normalize=self.normalize, layers=self.layers)


@dataclass(frozen=True, eq=False)
class VectorSet:
    """The vectors of some texts under a model. `rows` are those of the token shards, all where it is None."""

    model: Model
    tokens: TokenShards
    precision: str
    token_budget: int | None = None
    rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.tokens if self.rows is None else self.rows)

    @property
    def shards(self) -> int:
        """Files that they lie in."""
        return math.ceil(len(self) / SHARD_TEXTS)

    def stage(self, store: Store) -> Stage:
        """Where they are kept."""
        inputs: dict[str, Json] = {
            "model": self.model.fingerprint,
            "tokens": self.tokens.folder.name,  # a fingerprint itself
            "rows": None if self.rows is None else fingerprint(self.rows.tolist()),
            "precision": self.precision,
            "token_budget": self.token_budget,
            "shard": SHARD_TEXTS,
        }
        return store.stage("embeddings", VERSION, inputs)

    def sequences(self, shard: int) -> list[np.ndarray[Any, Any]]:
        """The token ids of a shard's texts."""
        part = range(shard * SHARD_TEXTS, min(len(self), (shard + 1) * SHARD_TEXTS))
        return self.tokens.take(part if self.rows is None else self.rows[part.start : part.stop])


def embed(
    store: Store,
    wanted: Sequence[VectorSet],
    size: WorkerSize,
    available: Resources,
    connect: Callable[[], object] | None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """The finished folders of what is wanted; what the store does not hold, one pool of workers encodes."""
    stages = [each.stage(store) for each in wanted]
    by_name = {stage.fingerprint: each for stage, each in zip(stages, wanted, strict=True)}

    def encode(partials: Mapping[str, Path]) -> None:
        # In the order of what is wanted, which keeps a model's texts together.
        of = {partials[name].name: each for name, each in by_name.items() if name in partials}
        folders = {folder.name: folder for folder in partials.values()}
        numbered = [Shard(folders[name], number) for name, each in of.items() for number in range(each.shards)]
        shards.run(numbered, EncodeShard, {"wanted": of}, size, available, connect, on_shard)

    build_together(stages, encode)
    return [stage.path for stage in stages]


class EncodeShard:
    """The worker: the vectors of a shard's texts, and what they cost in the table's metadata.

    Args:
        wanted: what is made in each folder, by its name.
    """

    def __init__(self, wanted: dict[str, VectorSet], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._wanted = wanted
        self._loaded: tuple[Model, BiEncoder] | None = None

    def __call__(self, shard: Shard) -> pa.Table:
        wanted, where = self._wanted[shard.folder.name], device()
        meter = shards.Meter(where.type, wanted.precision)
        encoder, sequences = self._encoder(wanted.model), wanted.sequences(shard.number)
        encoding = Encoding.on(where, wanted.precision, wanted.token_budget, pad_id(wanted.model.folder))
        vectors = encoding.embed(encoder.to(where), sequences, meter.count).cpu().numpy()
        return meter.into(table(vectors), len(sequences))

    def _encoder(self, model: Model) -> BiEncoder:
        """The encoder of a stage; the one before it is let go."""
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None
            self._loaded = model, model.load()
        return self._loaded[1]


def stored(folder: Path) -> list[Stored]:
    """The shards of a finished stage, in the order of the texts."""
    return [Stored.of(path) for path in shards.files(folder)]


def opened(folder: Path) -> Floats:
    """All vectors of a finished stage (N, D) in memory, in the order of the texts: for queries, which are few."""
    return np.concatenate([shard.open() for shard in stored(folder)])


def cost(folders: Sequence[Path], stage: str, recipe: str | None = None) -> Cost:
    """What the vectors in some folders cost together, as an entry of the ledger."""
    return shards.total([each for folder in folders for each in shards.costs(folder)], stage, recipe)


class VectorsByRow:
    """The vectors of a finished stage, read by the rows of the texts; nothing is read but what is asked for.

    Args:
        rows: those that the stage holds, ascending; None: all.
    """

    def __init__(self, folder: Path, rows: Rows | None = None) -> None:
        self._shards, self._rows = stored(folder), rows
        self._opened: dict[int, Floats] = {}

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self._shards[0].shape[1]

    def take(self, rows: Rows) -> Floats:
        """The vectors of `rows`, of any shape (…): (…, D). Raises KeyError for a row that is not there."""
        places = rows if self._rows is None else np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if self._rows is not None and (self._rows[places] != rows).any():
            raise KeyError("a vector is asked for that was not made")
        taken = np.empty((*rows.shape, self.dimension), np.float32)
        flat = taken.reshape(-1, self.dimension)
        for at, place in enumerate(places.ravel().tolist()):
            shard, local = divmod(place, len(self._shards[0]))  # all but the last have as many
            if shard not in self._opened:
                self._opened[shard] = self._shards[shard].open()
            flat[at] = self._opened[shard][local]
        return taken
