"""The command as a process, on the tiny experiment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Flow:
    """The tiny experiment in a folder of its own, with its store and its MLflow database."""

    folder: Path

    @property
    def store(self) -> Path:
        """The experiment's store."""
        return self.folder / "store"

    @property
    def comparison(self) -> Any:
        """comparison.json of the report."""
        return json.loads((self.store / "reports" / "tiny" / "comparison.json").read_text())

    @property
    def measures(self) -> dict[str, dict[str, float]]:
        """Row → measure → value, as in the report."""
        return {result["name"]: result["measures"] for result in self.comparison["results"]}

    @property
    def curves(self) -> dict[str, list[tuple[int, float, float | None]]]:
        """Trial → (step, loss, validation) of each point: what does not depend on the clock."""
        return {
            trial["name"]: [(point["step"], point["loss"], point["validation"]) for point in trial["curve"]]
            for result in self.comparison["results"]
            for trial in result["trials"]
        }

    def start(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        """The command, as a process that leads a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", verb, "tiny.yaml", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # It listens to Ctrl-C even where the tests were started in the background, which does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, verb: str, *arguments: str, until: Callable[[], bool] | None = None, by: int = 0) -> Ended:
        """The command run to its end, or until `until()`, when it is sent the signal `by`.

        Without a signal everything is killed then, the processes of Ray together with the command.
        """
        began = time.monotonic()
        process = self.start(verb, *arguments)
        try:
            if until is not None:
                while not until():
                    assert process.poll() is None, process.communicate()[1]
                    time.sleep(0.002)
                if by:
                    process.send_signal(by)
                else:
                    end_session(process.pid)
            output, errors = process.communicate(timeout=200)
        finally:
            end_session(process.pid)
        return Ended(process.returncode, output, errors, time.monotonic() - began)


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    status: int
    output: str
    errors: str
    seconds: float


def end_session(leader: int) -> None:
    """End what a process has left behind: Ray's own, which may outlive a killed driver by a moment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
                if session == leader:
                    os.kill(int(entry.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue
