"""The machines of the connected Ray cluster, those that an autoscaler may still add among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# What `ray up` leaves on the head, with each node type's resources filled in.
AUTOSCALING = Path("~/ray_bootstrap_config.yaml")


def machines() -> list[dict[str, float]]:
    """The resources ("CPU", "GPU", …) of each machine that there is or can be. Ray has to be connected."""
    import ray

    there = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    file = AUTOSCALING.expanduser()
    return _larger(there, _at_most(file)) if file.is_file() else there


def _at_most(file: Path) -> list[dict[str, float]]:
    """One entry for each machine of a cluster that has grown to its limits."""
    import yaml

    config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    total = config.get("max_workers", 0)
    head = config.get("head_node_type")
    grown = []
    for name, kind in config.get("available_node_types", {}).items():
        count = 1 if name == head else min(kind.get("max_workers", total), total)
        grown += [dict(kind.get("resources") or {})] * count
    return grown


def _larger(one: list[dict[str, float]], other: list[dict[str, float]]) -> list[dict[str, float]]:
    return max(one, other, key=lambda nodes: (sum(node.get("CPU", 0) for node in nodes), len(nodes)))
