"""Energy, pinned on made-up counters: packages are summed, one that began again at 0 is understood, parts of packages
and the platform are not counted twice, what cannot be read is 0 and no error; a GPU is asked by its name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.energy import Board, Packages


def zone(root: Path, zone: str, name: str, microjoules: object, most: int = 1_000_000) -> Path:
    """A zone of powercap's, or another value of its counter."""
    folder = root / zone
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def test_two_packages(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 50)
    zone(tmp_path, "intel-rapl:1", "package-1", 200)
    zone(tmp_path, "intel-rapl:2", "psys", 1000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100)
    packages = Packages(tmp_path)
    for name in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        zone(tmp_path, name, (tmp_path / name / "name").read_text().strip(), 900_000)
    zone(tmp_path, "intel-rapl:0", "package-0", 250_100)
    assert packages.joules() == pytest.approx(0.25)
    zone(tmp_path, "intel-rapl:0", "package-0", 250_200)
    zone(tmp_path, "intel-rapl:1", "package-1", 500_200)
    assert packages.joules() == pytest.approx(0.5001)
    assert packages.joules() == 0.0


def test_a_counter_begins_again(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    packages = Packages(tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 150_000)
    assert packages.joules() == pytest.approx(0.25)  # 900,000 to 1,000,000, and from 0 to 150,000


def test_what_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    assert Packages(tmp_path / "none").joules() == 0.0
    hidden = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    (hidden / "energy_uj").unlink()
    packages = Packages(tmp_path)
    assert packages.joules() == 0.0
    zone(tmp_path, "intel-rapl:0", "package-0", 700_000)  # can be read from now on: what it had before is not ours
    assert packages.joules() == 0.0
    zone(tmp_path, "intel-rapl:0", "package-0", 800_000)
    assert packages.joules() == pytest.approx(0.1)


class Nvml:
    """Stands for nvidia-ml-py, with one board."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules: int | None = 5_000

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-12ab":
            raise self.NVMLError("no such board")
        return "board"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        assert handle == "board"
        if self.millijoules is None:
            raise self.NVMLError("not supported")
        return self.millijoules


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    boards = {0: SimpleNamespace(uuid="other"), 1: SimpleNamespace(uuid="12ab")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", boards.__getitem__)
    return made


def test_a_board(nvml: Nvml) -> None:
    board = Board()
    nvml.millijoules = 7_500
    assert board.joules() == pytest.approx(2.5)
    assert board.joules() == 0.0
    assert board.place == "12ab"
    nvml.millijoules = None
    assert board.joules() == 0.0


def test_a_board_that_does_not_tell(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.millijoules = None
    assert Board().joules() == 0.0
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # such as a part of a board
    assert Board().joules() == 0.0
    missing: Any = None  # makes the import fail
    monkeypatch.setitem(sys.modules, "pynvml", missing)
    assert Board().joules() == 0.0
