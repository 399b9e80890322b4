"""How fast a device multiplies matrices: what the FLOPs of the ledger are held against.

Measured once a machine and precision, in half a second each, when nothing is trained; then the store has it.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from data import Store
from data.store import Json
from orchestrator import cluster
from orchestrator.cluster import Resources, WorkerSize

if TYPE_CHECKING:
    import torch

VERSION = 1
SECONDS = 0.4
# M, N, K of (M × K) times (K × N): a feed-forward layer of BERT-base for 1,024 tokens, so small that one of many
# rounds is undisturbed; and what fills a GPU.
SHAPES = {"cpu": (1024, 3072, 768), "cuda": (8192, 8192, 8192)}
CLUSTER_SECONDS = 60.0  # how long a cluster may take to give a worker's resources; it is not measured then
log = logging.getLogger(__name__)


def key(device: str, precision: str) -> str:
    """How a rate is named: "cpu bf16"."""
    return f"{device} {precision}"


def peak_flops(
    store: Store, precisions: Iterable[str], size: WorkerSize, available: Resources, seconds: float = SECONDS
) -> dict[str, float]:
    """FLOP/s of one of a worker's devices (a CPU core among those that it has, a GPU), by `key`; what could not be
    measured is left out.
    """
    kind, found = ("cuda" if size.gpus else "cpu"), {}
    for precision in sorted(set(precisions)):
        inputs: dict[str, Json] = {
            "machine": _machine(kind, available),
            "threads": size.cpus if kind == "cpu" else None,
            "torch": version("torch"),
            "precision": precision,
        }
        stage = store.stage("matrix-rates", VERSION, inputs)

        def measure(partial: Path, precision: str = precision) -> None:
            rate = _measured(kind, precision, size, seconds)
            (partial / "rate.json").write_text(json.dumps(rate), encoding="utf-8")

        try:
            found[key(kind, precision)] = float(json.loads((stage.build(measure) / "rate.json").read_text()))
        except (RuntimeError, TimeoutError) as error:  # torch's, such as a GPU that others have filled
            log.info("the rate of matrix products in %s was not measured: %s", precision, error)
    return found


def rate(device: str, precision: str, threads: int, seconds: float = SECONDS) -> float:
    """FLOP/s of one device in products of matrices, the best of as many rounds as take `seconds`.

    On CPUs that of a core, all `threads` at work.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        best = _best(torch.device(device), torch.bfloat16 if precision == "bf16" else torch.float32, seconds)
    finally:
        torch.set_num_threads(before)
    return best / (threads if device == "cpu" else 1)


def _best(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    import torch

    M, N, K = SHAPES[device.type]
    a, b = torch.randn(M, K, device=device, dtype=dtype), torch.randn(K, N, device=device, dtype=dtype)
    a[:256] @ b  # loads and warms up
    _wait(device)
    best, ends = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < ends:
        began = time.perf_counter()
        a @ b
        _wait(device)
        best = max(best, 2 * M * N * K / (time.perf_counter() - began))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _measured(kind: str, precision: str, size: WorkerSize, seconds: float) -> float:
    """Here; on a cluster, where a worker would be."""
    if not cluster.remote():
        return rate(kind, precision, size.cpus, seconds)
    import ray

    task = ray.remote(num_cpus=size.cpus, num_gpus=size.gpus, max_retries=0)(rate)
    asked = task.remote(kind, precision, size.cpus, seconds)
    try:
        return float(ray.get(asked, timeout=CLUSTER_SECONDS))
    except ray.exceptions.RayError as error:  # a GetTimeoutError too
        ray.cancel(asked)
        raise TimeoutError(str(error)) from error


def _machine(kind: str, available: Resources) -> str:
    """What tells machines apart; a cluster is known by its largest, since which one a worker gets is Ray's affair."""
    if cluster.remote():
        return f"a cluster's, {available.node_cpus} CPUs, {available.node_gpus:g} GPUs"
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
