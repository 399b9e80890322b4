"""The precision that training and encoding have where an experiment names none: what the device multiplies fastest.

Where a processor has no instructions for bf16, PyTorch's matrix products in it take six times as long as in fp32, and
those for the gradient of an input seventy times (docs/performance.md).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

Precision = Literal["bf16", "fp32"]

CPUINFO = Path("/proc/cpuinfo")
_MULTIPLIES = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux calls it on x86, and on ARM


@functools.cache
def cpu_precision() -> Precision:
    """bf16 where Linux says that this machine's processor multiplies it, else fp32."""
    try:
        known = re.search(r"^(?:flags|Features)\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return "fp32"
    return "bf16" if known and _MULTIPLIES & {*known[1].split()} else "fp32"
