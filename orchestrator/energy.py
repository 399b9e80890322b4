"""Energy that the devices of this process have drawn, where the machine tells: GPUs by NVML, CPUs by Linux' powercap.

Both count for a whole device, whatever runs on it: a GPU's board, a CPU's packages without the memory. What other
processes do there is in it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")  # of AMD's too; intel-rapl:0:0 and the like are parts of these


class Energy(Protocol):
    """A counter of joules. `place` tells it from any other: two processes that have the same one read the same."""

    place: str

    def joules(self) -> float:
        """Since it was asked last, or made; 0.0 where the machine does not tell."""
        ...


def energy(device: str) -> Energy:
    """The counter of this process's devices of a kind ("cpu" or "cuda")."""
    return Board() if device == "cuda" else Packages()


class Packages:
    """The CPU packages of this machine, by their RAPL counters of microjoules.

    A counter begins again at 0 after some minutes to hours of full load, so it has to be read more often than that.
    Usually only root may read them.

    Args:
        root: where powercap's zones are.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._root, self.place = root, socket.gethostname()
        zones = [zone for zone in root.glob("intel-rapl:*") if _PACKAGE.fullmatch(zone.name)]
        # A zone of the whole platform ("psys") has the packages in it.
        self._packages = [zone for zone in sorted(zones) if _read(zone / "name").startswith("package")]
        self._last = self._counters()

    def joules(self) -> float:
        """Since it was asked last; a package that cannot be read now, or could not then, is left out."""
        now, drawn = self._counters(), 0
        for zone, counter in now.items():
            before = self._last.get(zone)
            if before is not None:
                begun_again = counter < before
                drawn += counter - before + (_number(zone / "max_energy_range_uj") if begun_again else 0)
        self._last = now
        return max(0, drawn) / 1e6

    def _counters(self) -> Mapping[Path, int]:
        """Microjoules, of those that can be read."""
        texts = {zone: _read(zone / "energy_uj") for zone in self._packages}
        return {zone: int(text) for zone, text in texts.items() if text.isdigit()}


class Board:
    """This process's GPU, by NVML's counter of millijoules (Volta and later); it takes nvidia-ml-py."""

    def __init__(self) -> None:
        self.place = socket.gethostname()
        self._nvml: Any = None
        try:
            import pynvml
            import torch

            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            pynvml.nvmlInit()
            # By its name, since CUDA_VISIBLE_DEVICES numbers them anew.
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self._nvml, self.place = pynvml, uuid
        except Exception:  # not installed, no driver, no such board (a part of one has no counter): it does not tell
            pass
        self._last = self._counter()

    def joules(self) -> float:
        """Since it was asked last."""
        before, self._last = self._last, self._counter()
        return 0.0 if before is None or self._last is None else max(0, self._last - before) / 1e3

    def _counter(self) -> int | None:
        if self._nvml is None:
            return None
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError:
            return None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(file: Path) -> int:
    text = _read(file)
    return int(text) if text.isdigit() else 0
