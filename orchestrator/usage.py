"""What a process holds and draws while it works: the peak of its memory, and the energy of its devices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.energy import Energy, energy

PROCESS = Path("/proc/self")
POLL_SECONDS = 60.0  # between two readings at most: RAPL's counters begin again after some minutes of full load


@dataclass
class Usage:
    """`peak_bytes`, 0 where it is not known, and `joules`, 0.0 where the machine does not tell."""

    peak_bytes: int = 0
    joules: float = 0.0

    def include(self, other: Usage) -> None:
        """Count what was used at another time."""
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.joules += other.joules


class Gauge:
    """Measures this process from one reading to the next.

    Args:
        device: "cpu" or "cuda".
        counter: of energy; that of the device unless it is given.
    """

    def __init__(self, device: str, counter: Energy | None = None) -> None:
        self._energy = counter or energy(device)
        self._memory = Allocated() if device == "cuda" else Resident()
        self._usage, self._polled = Usage(), time.monotonic()

    @property
    def place(self) -> str:
        """The devices whose energy is read: processes that have the same one read the same."""
        return self._energy.place

    def read(self) -> Usage:
        """What was used since the last reading, which ends here."""
        usage, self._usage = self._usage, Usage()
        usage.include(self._now())
        self._memory.reset()
        return usage

    def poll(self) -> None:
        """To be called more often than counters overflow; most calls do nothing."""
        if time.monotonic() - self._polled >= POLL_SECONDS:
            self._usage.include(self._now())

    def _now(self) -> Usage:
        self._polled = time.monotonic()
        return Usage(self._memory.peak(), self._energy.joules())


class Resident:
    """The resident set of this process, mapped files included.

    Linux keeps its peak, and forgets it when 5 is written to `clear_refs`. Where that cannot be, a peak is the largest
    that was seen whenever it was asked for; without `/proc` it is 0.

    Args:
        process: the process's folder in `/proc`.
    """

    def __init__(self, process: Path = PROCESS) -> None:
        self._process = process
        self.reset()

    def reset(self) -> None:
        """A peak is one since now."""
        try:
            (self._process / "clear_refs").write_text("5")
            self._field = "VmHWM:"
        except OSError:
            self._field = "VmRSS:"

    def peak(self) -> int:
        """Bytes."""
        try:
            lines = (self._process / "status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(self._field)), 0)


class Allocated:
    """What tensors hold on this process's GPU. What torch's allocator keeps beyond that is an earlier trial's too."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A peak is one since now."""
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes."""
        import torch

        return int(torch.cuda.max_memory_allocated())
