"""Seconds of a call, and the line that sums up its rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def spread(values: Iterable[float]) -> str:
    """The median, and the lowest and highest."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})"
