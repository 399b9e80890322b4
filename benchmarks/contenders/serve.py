"""What the contenders share: a round for every line that comes in, its figures as a line of JSON that goes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(run: Callable[[], tuple[float, float, dict[str, Any]]]) -> None:
    """Answer each line with work, seconds and notes of one call; whatever else is printed goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for _ in sys.stdin:
        work, seconds, notes = run()
        print(json.dumps({"work": work, "seconds": seconds, "notes": notes}), file=answers, flush=True)
