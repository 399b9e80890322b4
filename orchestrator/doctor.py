"""Is this machine, or the cluster, fit to run: versions, memory, disk, Ray, and the weights that are at hand."""

from __future__ import annotations

import importlib.util
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from orchestrator import cluster
from orchestrator.precision import cpu_precision
from orchestrator.weights import PACKAGED

PACKAGES = ("torch", "transformers", "ray", "mlflow", "faiss-cpu", "pyarrow", "ir_measures", "bm25s")
MEMORY_GB, DISK_GB = 6.0, 5.0


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    found: str
    good: bool


def check() -> list[Finding]:
    """All findings; connects to a cluster only where RAY_ADDRESS names one."""
    findings = [_package(name) for name in PACKAGES]
    available = cluster.resources()
    where = f"cluster at {address}" if (address := os.environ.get("RAY_ADDRESS")) else "this machine"
    findings.append(Finding("resources", f"{available.cpus} CPUs, {available.gpus:g} GPUs ({where})", True))
    findings.append(Finding("precision", f"{cpu_precision()} on this machine's CPUs, bf16 on GPUs, unless named", True))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    findings.append(Finding("memory", f"{memory:.1f} GB (at least {MEMORY_GB:g} wanted)", memory >= MEMORY_GB))
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    findings.append(Finding("disk", f"{disk:.1f} GB free here (at least {DISK_GB:g} wanted)", disk >= DISK_GB))
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    # With a token on file, `ray start` asks for it and `ray job submit` does not bring it unless this is set.
    token = (Path.home() / ".ray" / "auth_token").exists()
    findings.append(Finding("RAY_AUTH_MODE", mode, mode != "not set" or not (token and address)))
    for model, packaged in PACKAGED.items():
        there = importlib.util.find_spec(packaged.package) is not None
        findings.append(Finding(f"weights of {model}", "in a package" if there else "from the hub", True))
    return findings


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name), True)
    except PackageNotFoundError:
        return Finding(name, "missing: pip install -c constraints.txt -e .", False)
