"""Contenders in turn, round by round, in one run: what one of them does in a second over what another does.

Each contender is a process of its own that has loaded all it needs and sleeps until it is asked for a round, so that
what slows the machine for a while slows all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from timing import spread

ROOT = Path(__file__).resolve().parent.parent
OURS = Path(sys.executable)
OTHERS = ROOT / ".venv-bench" / "bin" / "python"


class Contender(NamedTuple):
    """A script of `benchmarks/contenders` with its arguments, and the Python that has what it needs."""

    name: str
    script: str
    arguments: tuple[str, ...]
    python: Path = OTHERS


class Round(NamedTuple):
    """What a contender did: units of work in seconds, and what else it says of the round."""

    work: float
    seconds: float
    notes: dict[str, Any]

    @property
    def rate(self) -> float:
        """Units of work a second."""
        return self.work / self.seconds


class _Process:
    def __init__(self, contender: Contender) -> None:
        command = [str(contender.python), str(ROOT / "benchmarks" / "contenders" / contender.script)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        self._process = subprocess.Popen(
            [*command, *contender.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._name = contender.name

    def round(self) -> Round:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with status {self._process.wait()}")
        return Round(**json.loads(line))

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def contest(contenders: Sequence[Contender], rounds: int) -> dict[str, list[Round]]:
    """Every contender's rounds, after one of each to warm up."""
    missing = {str(contender.python) for contender in contenders if not contender.python.exists()}
    if missing:
        raise SystemExit(f"{', '.join(missing)} is missing: run `make bench`, which installs it")
    with ExitStack() as stack:
        processes = {contender.name: stack.enter_context(_Process(contender)) for contender in contenders}
        results: dict[str, list[Round]] = {name: [] for name in processes}
        for number in range(rounds + 1):
            for name, process in processes.items():
                done = process.round()
                print(f"  round {number}  {name:<28} {done.rate:8.1f} a second", file=sys.stderr, flush=True)
                if number:
                    results[name].append(done)
    return results


def ratio(results: dict[str, list[Round]], ours: str, other: str) -> str:
    """How many times the rate of another ours is: the median over rounds, and the lowest and highest."""
    return spread(a.rate / b.rate for a, b in zip(results[ours], results[other], strict=True))


def rate(rounds: Sequence[Round]) -> float:
    """The median rate."""
    return statistics.median(done.rate for done in rounds)
