"""What is quick stays quick: importing the command, its help and the lists of losses and recipes load nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("datasets", "faiss", "ir_measures", "matplotlib", "mlflow", "ray", "scipy", "torch", "transformers")


def loaded(code: str) -> tuple[set[str], str]:
    """The heavy packages that a fresh interpreter holds after this code, and what it printed."""
    after = f"\nimport sys\nprint('LOADED', *(name for name in {HEAVY} if name in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code + after], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed, _, names = done.stdout.rpartition("LOADED")
    return set(names.split()), printed


def command(*arguments: str) -> str:
    return (
        f"import sys\nsys.argv = ['stillhouse', *{list(arguments)}]\nfrom orchestrator.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


def test_importing_the_command_loads_nothing_heavy() -> None:
    assert loaded("import orchestrator.cli")[0] == set()


@pytest.mark.parametrize("arguments", [("--help",), ("compare", "--help"), ("recipes",)])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    heavy, printed = loaded(command(*arguments))
    assert heavy == set()
    assert len(printed.splitlines()) > 5


@pytest.mark.parametrize("module", ["data", "tune_spaces", "orchestrator.records", "orchestrator.recipes"])
def test_light_modules_stay_light(module: str) -> None:
    assert loaded(f"import {module}")[0] == set()


def test_losses_take_what_torch_takes() -> None:
    assert loaded("import losses")[0] == {"torch"}


def test_the_check_sees_a_heavy_import() -> None:
    assert loaded("import ir_measures")[0] >= {"ir_measures"}
