"""Shards of what a model says of texts: made on all of the machine or the cluster, each with what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data import Shard, run_shards
from data.sharded import Worker
from orchestrator import cluster
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.encoding import TokenCount
from orchestrator.records import Cost, to_json
from orchestrator.usage import Gauge


def run(
    shards: Sequence[Shard],
    worker: Callable[..., Worker],
    arguments: Mapping[str, Any],
    size: WorkerSize,
    available: Resources,
    connect: Callable[[], object] | None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """`data.run_shards` with a worker on every GPU, or on as many CPU cores each as a training worker has.

    Where one would have the whole of this machine, this process does the work: it has loaded all that a worker would
    load first, and saves the start of one, 8 s. The worker is given `threads` beside the arguments.
    """
    workers = max(1, int(available.gpus)) if size.gpus else max(1, available.cpus // size.cpus)
    here = workers == 1 and not available.gpus and not cluster.remote()
    run_shards(
        shards,
        worker,
        {**arguments, "threads": size.cpus},
        concurrency=workers,
        num_cpus=size.cpus,
        num_gpus=1 if size.gpus else 0,
        on_shard=on_shard,
        connect=None if here else connect,
    )


class Meter:
    """What a shard costs: the time from here to `into`, and what was counted meanwhile."""

    def __init__(self, device: str, precision: str = "") -> None:
        self.count = TokenCount()
        self._device, self._precision, self._gauge = device, precision, Gauge(device)
        self._began = time.perf_counter()

    def into(self, table: pa.Table, examples: int) -> pa.Table:
        """The table, with the cost as metadata of its schema."""
        import torch

        wall, used = time.perf_counter() - self._began, self._gauge.read()
        devices = 1 if self._device == "cuda" else torch.get_num_threads()
        cost = Cost(
            stage="encoding",
            device=self._device,
            devices=devices,
            device_seconds=wall * devices,
            wall_seconds=wall,
            examples=examples,
            tokens=self.count.tokens,
            flops=self.count.flops,
            peak_bytes=used.peak_bytes,
            joules=used.joules,
            precision=self._precision,
        )
        return table.replace_schema_metadata({"cost": json.dumps(to_json(cost))})


def files(folder: Path) -> list[Path]:
    """The files of a stage in shards, in their order."""
    return sorted(folder.glob("part-*.arrow"))


def costs(folder: Path) -> list[Cost]:
    """What each shard in a folder cost."""
    found = []
    for path in files(folder):
        with pa.memory_map(str(path)) as file:
            found.append(Cost(**json.loads(pa.ipc.open_file(file).schema.metadata[b"cost"])))
    return found


def total(costs: Sequence[Cost], stage: str, recipe: str | None = None) -> Cost:
    """Costs on one kind of device together, as an entry of the ledger."""
    sums: dict[str, Any] = {
        name: sum(getattr(each, name) for each in costs)
        for name in ("device_seconds", "wall_seconds", "examples", "tokens", "flops", "joules")
    }
    peak, most = max(each.peak_bytes for each in costs), max(costs, key=lambda each: each.flops)
    kept: dict[str, Any] = {"device": costs[0].device, "devices": costs[0].devices, "precision": most.precision}
    return Cost(stage=stage, recipe=recipe, peak_bytes=peak, **kept, **sums)
