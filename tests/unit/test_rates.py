"""The rate of matrix products, pinned: FLOPs by the clock, of one device; measured once a machine, precision and number
of threads; what cannot be measured is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data import Store
from orchestrator import rates
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.rates import peak_flops, rate

HERE = Resources(2, 0.0, 2, 0.0)


def test_a_rate_is_flops_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rates.SHAPES, "cpu", (300, 400, 500))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    ticks = iter([100.0, 101.0, 103.0, 103.5, 104.0, 105.0, 106.0])  # two products, of 2 and of 1 s
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert rate("cpu", "fp32", threads=4, seconds=5.0) == 2 * 300 * 400 * 500 / 1.0 / 4


def test_threads_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rates.SHAPES, "cpu", (256, 64, 64))
    before = torch.get_num_threads()
    assert rate("cpu", "bf16", threads=1, seconds=0.0) > 0
    assert torch.get_num_threads() == before


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is measured from now on; the rate is always 5."""
    asked: list[tuple[Any, ...]] = []

    def rate(*what: Any) -> float:
        asked.append(what)
        return 5.0

    monkeypatch.setattr(rates, "rate", rate)
    return asked


def test_measured_once(tmp_path: Path, measured: list[tuple[Any, ...]]) -> None:
    store = Store(tmp_path)
    for _ in range(2):
        assert peak_flops(store, ["fp32", "bf16", "fp32"], WorkerSize(2, 0), HERE, 0.1) == {
            "cpu bf16": 5.0,
            "cpu fp32": 5.0,
        }
    assert measured == [("cpu", "bf16", 2, 0.1), ("cpu", "fp32", 2, 0.1)]
    peak_flops(store, ["fp32"], WorkerSize(1, 0), HERE, 0.1)
    assert len(measured) == 3


def test_another_machine_is_measured_anew(
    tmp_path: Path, measured: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Callable[..., str] = Path.read_text
    for model in ("one CPU", "another CPU", "one CPU"):
        text = f"processor: 0\nmodel name\t: {model}\n"
        monkeypatch.setattr(
            Path, "read_text", lambda self, *a, t=text, **k: t if self.name == "cpuinfo" else read(self, *a, **k)
        )
        peak_flops(Store(tmp_path), ["fp32"], WorkerSize(2, 0), HERE)
    assert len(measured) == 2


def test_what_cannot_be_measured_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(device: str, precision: str, threads: int, seconds: float) -> float:
        if precision == "bf16":
            raise torch.OutOfMemoryError("full")
        return 7.0

    monkeypatch.setattr(rates, "rate", full)
    assert peak_flops(Store(tmp_path), ["fp32", "bf16"], WorkerSize(2, 0), HERE) == {"cpu fp32": 7.0}
