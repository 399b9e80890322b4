"""The connection to Ray, and whether it can hold what an experiment asks for."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import UserError
from data.machines import machines

if TYPE_CHECKING:
    from orchestrator.config import Experiment

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The driver reports progress itself, from the journals of the trials.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end as if the search were over
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
# With clusters switched off a local Ray has the address 127.0.0.1 and its servers listen there alone; otherwise they
# listen on all interfaces. Read when ray is first imported.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Resources:
    """What the cluster (or this machine) has or grows to; `node_cpus` and `node_gpus` are its largest node's."""

    cpus: int
    gpus: float
    node_cpus: int
    node_gpus: float


@dataclass(frozen=True)
class WorkerSize:
    """What one training worker holds."""

    cpus: int
    gpus: float


def several() -> bool:
    """Whether this process is connected to a cluster that has, or grows to, several machines."""
    return connected() and len(machines()) > 1


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names (as in a submitted job), or start a local one; once a process."""
    if connected():
        return
    address = os.environ.get("RAY_ADDRESS")
    set_environment()
    import ray

    for name in ("ray._private.authentication", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if not address:
        # A small object store: data travels by files of the store, not through Ray.
        # "local", or it would find a cluster that `ray start` left on this machine.
        options |= {"address": "local", "num_cpus": local_cpus(), "include_dashboard": False}
        options |= {"object_store_memory": 256 * 1024**2}
    try:
        with _quiet():
            ray.init(**options)
    except ConnectionError as error:
        raise UserError(
            f"there is no Ray cluster at {address}",
            where="RAY_ADDRESS",
            mend="Start one, or unset it to run on this machine alone.",
        ) from error


def set_environment() -> None:
    """What Ray reads from the environment, some of it when it is first imported."""
    for variable, value in ENVIRONMENT.items() if remote() else (ENVIRONMENT | LOOPBACK).items():
        os.environ.setdefault(variable, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard error goes nowhere: Ray's C++ core says there that its log level is set. Its errors are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def connected() -> bool:
    """Whether this process is connected to Ray; does not import it."""
    if "ray" not in sys.modules:
        return False
    import ray  # waits where another thread is in the midst of importing it

    return bool(ray.is_initialized())


def remote() -> bool:
    """Whether Ray is a cluster that was there before, not one that this process starts for itself."""
    return bool(os.environ.get("RAY_ADDRESS"))


def local_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def resources() -> Resources:
    """What there is: the connected cluster's, or this machine's where Ray is not running and would start locally."""
    if os.environ.get("RAY_ADDRESS"):
        connect()
    if connected():
        nodes = machines()
        cpus, gpus = [int(n.get("CPU", 0)) for n in nodes], [float(n.get("GPU", 0)) for n in nodes]
        return Resources(sum(cpus), sum(gpus), max(cpus, default=0), max(gpus, default=0.0))
    import torch

    cpus_here, gpus_here = local_cpus(), float(torch.cuda.device_count())
    return Resources(cpus_here, gpus_here, cpus_here, gpus_here)


def worker_size(experiment: Experiment, available: Resources) -> WorkerSize:
    """What each training worker of the experiment gets.

    Unless the experiment says, a worker without a GPU gets an equal share of the largest node's CPUs, so that a
    single one uses the whole machine; a worker with a GPU gets one CPU.

    Raises:
        UserError: the workers can never be scheduled on what is available.
    """
    scaling = experiment.scaling
    gpus = float(scaling.gpus_per_worker)
    cpus = scaling.cpus_per_worker
    if cpus is None:
        cpus = 1 if gpus else max(1, available.node_cpus // scaling.workers)
    if scaling.workers * cpus > available.cpus:
        raise UserError(
            f"{scaling.workers} workers × {cpus} CPUs need {scaling.workers * cpus}, there are {available.cpus}",
            where="scaling.workers",
            mend=f"Set scaling.workers to {max(1, available.cpus // cpus)} or less, or connect to a larger cluster.",
        )
    if scaling.workers * gpus > available.gpus:
        raise UserError(
            f"{scaling.workers} workers × {gpus:g} GPUs need {scaling.workers * gpus:g}, there are {available.gpus:g}",
            where="scaling.gpus_per_worker",
            mend="Set scaling.gpus_per_worker to 0 to train on CPUs." if not available.gpus else "Ask for fewer.",
        )
    # What there is in all may lie on several machines, and a worker runs on one.
    for key, unit, needed, largest in (
        ("cpus_per_worker", "CPUs", cpus, available.node_cpus),
        ("gpus_per_worker", "GPUs", gpus, available.node_gpus),
    ):
        if needed > largest:
            raise UserError(
                f"a worker of {needed:g} {unit} fits no machine: the largest has {largest:g}",
                where=f"scaling.{key}",
                mend=f"Set it to {largest:g} or less.",
            )
    return WorkerSize(cpus, gpus)
