"""A stage in shards: the ones that are missing are made, here or by Ray Data workers, each in one file."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from data.arrow import write_arrow
from data.errors import UserError
from data.machines import machines
from data.mirror import TEMPORARY, mirror_of
from data.store import full_disk
from data.travel import Packed, pack, unpack


class Shard(NamedTuple):
    """A shard of the stage that is made in `folder`."""

    folder: Path
    number: int

    @property
    def path(self) -> Path:
        """Its Arrow file."""
        return self.folder / f"part-{self.number:05d}.arrow"


class Worker(Protocol):
    """Makes the table of a shard. It is built once per Ray worker, so what is slow to load is loaded once."""

    def __call__(self, shard: Shard, /) -> pa.Table: ...


def run_shards(
    shards: Sequence[Shard],
    worker: Callable[..., Worker],
    worker_arguments: Mapping[str, Any],
    *,
    concurrency: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    on_shard: Callable[[int, int], None] | None = None,
    connect: Callable[[], object] | None = None,
) -> None:
    """Make those of the shards, of one stage or of several, that are not there yet; after a kill, the rest of them.

    `connect` connects to Ray and is called only if there is a shard to make; without it the shards are made in this
    process, one after the other. On a cluster, every machine must see their folders under the same paths, or the store
    be at a URI: there a shard goes when it is made, and it is brought here from whichever machine has made it.

    Resources: `concurrency` workers (None: as many as fit) take `num_cpus` CPUs and `num_gpus` GPUs each until the last
    shard is done, and nothing else runs: the shard numbers come from the driver, so no CPU has to stay free for a
    reading task. But what the caller itself holds is not free: from within a trial or a task that holds the CPUs asked
    for, the workers wait for ever. Call it from the driver.

    `on_shard(done, total)` is called at the start and after each shard. Raises UserError when the workers can never be
    scheduled and when the disk is full; a UserError of a worker arrives as it was raised.
    """
    report = on_shard or (lambda done, total: None)
    for folder in {shard.folder for shard in shards}:
        folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if not _finished(shard.path)]
    missing = _not_brought(missing)
    done = len(shards) - len(missing)
    report(done, len(shards))
    if not missing:
        return
    if connect is None:
        make = worker(**worker_arguments)
        for shard in missing:
            _make_shard(make, shard)
            _keep(shard)
            done += 1
            report(done, len(shards))
        return

    connect()
    import ray.data

    _hush()
    size = min(_pool_size(concurrency, num_cpus, num_gpus), len(missing))
    # One block a shard: from a single block, Ray Data would feed a single worker.
    folders = list(dict.fromkeys(shard.folder.absolute() for shard in missing))
    items = [{"folder": folders.index(shard.folder.absolute()), "number": shard.number} for shard in missing]
    made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Maker,
        fn_constructor_args=(worker, pack((folders, dict(worker_arguments))), num_cpus),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    for row in made.iter_rows():
        if row["error"]:
            what, where, mend = json.loads(row["error"])
            raise UserError(what, where=where, mend=mend)
        _bring(Shard(folders[row["folder"]], row["number"]))
        done += 1
        report(done, len(shards))


class _Maker:
    """What a Ray worker runs: makes shards with the worker and writes them, so that no table travels.

    A UserError comes back as a value: raised in a Ray worker, it would arrive as text inside of an error of Ray's.
    """

    def __init__(self, worker: Callable[..., Worker], packed: Any, num_cpus: float) -> None:
        # Read by the tokenizers' thread pool when it first starts: as many threads as CPUs were granted.
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.environ["RAYON_NUM_THREADS"] = str(max(1, math.floor(num_cpus)))
        self._worker, self._packed = worker, packed
        self._folders: list[Path] = []
        self._make: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        error = ""
        try:
            if self._make is None:
                self._folders, arguments = unpack(self._packed)
                self._make = self._worker(**arguments)
            shard = Shard(self._folders[int(batch["folder"][0])], int(batch["number"][0]))
            _make_shard(self._make, shard)
            if _keep(shard) and isinstance(self._packed, Packed) and not self._packed.home:
                shard.path.unlink()  # the stage is put together on another machine
        except UserError as mendable:
            error = json.dumps([mendable.what, mendable.where, mendable.mend])
        return {**batch, "error": [error]}


def _hush() -> None:
    """`on_shard` is the progress: Ray Data's own goes to its log file only."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)


def _keep(shard: Shard) -> bool:
    """Take it to where the store is kept, if that is a URI; whether it is there."""
    mirror = mirror_of(shard.path)
    return mirror is not None and mirror.keep(shard.path)


def _not_brought(shards: list[Shard]) -> list[Shard]:
    """Those that are not kept at the store's URI either; the others are brought here."""
    mirrors = {folder: mirror for folder in {shard.folder for shard in shards} if (mirror := mirror_of(folder))}
    kept = {folder: mirror.names() for folder, mirror in mirrors.items()}

    def brought(shard: Shard) -> bool:
        if (mirror := mirrors.get(shard.folder)) is None:
            return False
        name = shard.path.relative_to(mirror.folder).as_posix()
        return name in kept[shard.folder] and mirror.bring(name) and _finished(shard.path)

    return [shard for shard in shards if not brought(shard)]


def _bring(shard: Shard) -> None:
    """Bring it here, if a worker on another machine has made it."""
    mirror = mirror_of(shard.path)
    if mirror is None or _finished(shard.path):
        return
    if not mirror.bring(shard.path.relative_to(mirror.folder).as_posix()):
        raise UserError(
            f"{mirror.remote.uri} does not have what a worker on another machine has made",
            where="store",
            mend="Run again, when every machine of the cluster can write there.",
        )


def _make_shard(make: Worker, shard: Shard) -> None:
    try:
        _write(make(shard), shard.path)
    except OSError as error:
        if mendable := full_disk(error, shard.folder):
            raise mendable from error
        raise


def _write(table: pa.Table, path: Path) -> None:
    """Write a table under a temporary name, as a single batch so that a row is one look-up, and rename it."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}{TEMPORARY}")
    try:
        write_arrow(table.combine_chunks(), temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _finished(path: Path) -> bool:
    """Whether the file is there and whole: an Arrow file that was cut off has lost the footer at its end."""
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for index in range(reader.num_record_batches):
                reader.get_batch(index).validate()
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def _pool_size(concurrency: int | None, num_cpus: float, num_gpus: float) -> int:
    """How many workers to start. Raises UserError if that many (or a single one) can never be scheduled."""
    nodes = machines()
    needs = (("CPU", num_cpus), ("GPU", num_gpus))
    fit = sum(
        # Rounded first: 0.3 / 0.1 is a little less than 3.
        math.floor(round(min(node.get(kind, 0) / need for kind, need in needs if need > 0), 6))
        for node in nodes
    )
    if fit < (concurrency or 1):
        there = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
        raise UserError(
            f"{concurrency or 1} Ray worker(s) of {num_cpus:g} CPU and {num_gpus:g} GPU each can never start: "
            f"the cluster has room for {fit} (machines: {there})",
            mend="Ask for fewer or smaller workers, or add machines.",
        )
    return concurrency or fit
