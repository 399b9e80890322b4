"""The arrows between packages, read from the imports in every file, those inside functions too."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A package may import the standard library and what is listed, or anything but what is listed.
ONLY = {"losses": {"torch", "losses"}, "tune_spaces": {"tune_spaces"}}
NEVER = {
    "data": {"orchestrator", "losses", "tune_spaces", "mlflow", "ray.train", "ray.tune"},
    "orchestrator": {"tests", "benchmarks"},
}
FILES = sorted(path for package in (*ONLY, *NEVER) for path in (ROOT / package).rglob("*.py"))


def imported(source: str) -> set[str]:
    """Every module that a file imports, and for `from a import b` also `a.b`, which may be one."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their package in full"
            modules |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def against_the_arrows(package: str, source: str) -> set[str]:
    """The imports of a file that its package may not have."""
    modules = imported(source)
    if package in ONLY:
        return {module for module in modules if module.split(".")[0] not in ONLY[package] | sys.stdlib_module_names}
    return {module for module in modules for never in NEVER[package] if f"{module}.".startswith(f"{never}.")}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_imports_follow_the_arrows(path):
    assert against_the_arrows(path.relative_to(ROOT).parts[0], path.read_text(encoding="utf-8")) == set()


def test_every_package_is_looked_at():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"data", "losses", "orchestrator", "tune_spaces"}


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("losses", "import numpy as np", {"numpy"}),
        ("losses", "import math, torch.nn\nfrom losses.margin import Margin", set()),
        ("losses", "def f():\n    from data import errors", {"data", "data.errors"}),
        ("tune_spaces", "import torch", {"torch"}),
        ("data", "import ray.data\nfrom ray import data\nimport pyarrow", set()),
        ("data", "from ray import train", {"ray.train"}),
        ("data", "if True:\n    import ray.tune.search", {"ray.tune.search"}),
        ("data", "from orchestrator import config", {"orchestrator", "orchestrator.config"}),
        ("orchestrator", "import ray.train, losses, data, tune_spaces, mlflow", set()),
    ],
)
def test_the_check_itself(package, source, found):
    assert against_the_arrows(package, source) == found


def test_relative_imports_are_refused():
    with pytest.raises(AssertionError, match="in full"):
        imported("from . import records")
