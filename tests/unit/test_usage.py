"""What a process uses, pinned: a peak of memory that was freed again is seen, once, and not in what comes after; where
Linux cannot forget a peak the largest that was seen is told; energy is added up over polls.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import usage
from orchestrator.usage import Gauge, Resident, Usage

ROOT = Path(__file__).parents[2]
HELD = 300 * 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux'")

# In a process of its own: what else the tests hold and free here is not in the way.
HOLD_AND_FREE = f"""
from orchestrator.usage import Resident
memory = Resident()
before = memory.peak()
held = bytearray({HELD})
del held
print(memory.peak() - before)
memory.reset()
print(memory.peak() - before)
"""


@linux
def test_what_was_held_and_freed_is_seen_and_forgotten() -> None:
    command = [sys.executable, "-c", HOLD_AND_FREE]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    peak, after = map(int, told)
    assert abs(peak - HELD) < 20 * 2**20
    assert after < 20 * 2**20


def test_where_a_peak_cannot_be_forgotten_what_was_seen_counts(tmp_path: Path) -> None:
    status = "VmHWM:\t    9000 kB\nVmRSS:\t    4000 kB\n"
    (tmp_path / "status").write_text(status)
    (tmp_path / "clear_refs").mkdir()  # cannot be written
    memory = Resident(tmp_path)
    assert memory.peak() == 4000 * 1024
    (tmp_path / "clear_refs").rmdir()
    memory.reset()
    assert memory.peak() == 9000 * 1024
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert Resident(tmp_path / "none").peak() == 0


class Counter:
    """A counter that has counted a joule more whenever it is asked."""

    place = "here"

    def joules(self) -> float:
        return 1.0


def test_a_gauge_is_read_from_one_reading_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = Gauge("cpu", Counter())
    assert gauge.place == "here"
    gauge.poll()  # too early
    assert gauge.read().joules == 1.0
    monkeypatch.setattr(usage, "POLL_SECONDS", 0.0)
    for _ in range(3):
        gauge.poll()
    assert gauge.read().joules == 4.0
    assert gauge.read().joules == 1.0


def test_usage_at_two_times() -> None:
    whole = Usage(300, 2.0)
    whole.include(Usage(200, 0.5))
    assert whole == Usage(300, 2.5)
