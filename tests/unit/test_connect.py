"""Pins: which Ray is connected to. Nothing is started here."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import cluster


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ray.init is called with."""
    import ray

    given: dict[str, Any] = {}
    monkeypatch.setattr(cluster, "connected", lambda: False)
    monkeypatch.setattr(cluster, "ENVIRONMENT", {})
    monkeypatch.setattr(cluster, "LOOPBACK", {})
    monkeypatch.setattr(ray, "init", given.update)
    return given


def test_without_an_address_a_local_one_of_its_own(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "local_cpus", lambda: 3)
    cluster.connect()
    assert options["address"] == "local"  # not one that `ray start` left on this machine
    assert options["num_cpus"] == 3


def test_with_an_address_that_cluster_as_it_is(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    cluster.connect()
    assert not {"address", "num_cpus", "object_store_memory"} & options.keys()
