"""A disk that fills up again and again, a real one: whatever was being made, one line says so, nothing is damaged, and
with some more room it goes on to the numbers of a disk that was never full.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_trial
from safetensors.torch import load_file
from tiny import save, state_equal
from tiny_trial import run_of

from data import Store, UserError
from data.care import entries
from data.store import verify
from orchestrator import checks, cluster
from orchestrator.cluster import Resources
from orchestrator.evaluation import evaluate_all, trained, untrained
from orchestrator.trial import run_trial
from orchestrator.workspace import MODEL, Workspace

STEP = 24  # kB


class Disk:
    """A file system in memory, of so many kB."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.size = folder, STEP

    def grow(self, size: int) -> None:
        self.size += size
        subprocess.run(["mount", "-o", f"remount,size={self.size}k", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={STEP}k", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here: that takes root")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


WRITTEN = {"generator": "trained", "training": {"epochs": 1, "batch_size": 4, "precision": "fp32", "validations": 1}}
GENERATION = {**WRITTEN, "round_trip": {"depth": 30}}


@pytest.mark.parametrize("generation", [None, GENERATION], ids=["judged", "generated"])
def test_whatever_is_being_made(
    generation: dict[str, Any] | None,
    disk: Disk,
    beir: Callable[..., Path],
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "resources", lambda: Resources(1, 0.0, 1, 0.0))
    collection = beir(**tiny_trial.beir_files())
    model = save(tmp_path / "model", tokenizer=tokenizer_folder, layers=3)

    def everything(store: Path) -> tuple[Any, Any]:
        experiment = tiny_trial.experiment(collection, model, store)
        mix = {"mix": [{"source": "mined", "depth": 5}, {"source": "bm25", "depth": 5}]}
        settings = {**experiment.model_dump(), "negatives": mix, "generation": generation}
        if generation:
            settings["training"]["queries"] = "both"
        workspace = Workspace(experiment.model_validate(settings))
        workspace.store.check()
        checks.collection(workspace)
        checks.encoders(workspace)
        run = run_of(workspace.experiment)
        run_trial(workspace, run, lambda point: None)
        trial = workspace.trial(run)
        rows = {"untrained": untrained(workspace), "trained": trained(workspace, run)}
        evaluated = evaluate_all(workspace, rows)
        weights = load_file(trial.path / MODEL / "model.safetensors")
        return {row: value.per_query for row, value in evaluated.items()}, weights

    expected, weights = everything(tmp_path / "roomy")
    told: list[UserError] = []
    while disk.size < 4096:
        try:
            found, same = everything(disk.folder / "store")
            break
        except UserError as error:
            told.append(error)
            disk.grow(3 * STEP if generation else STEP)  # it has many more files, and takes longer
    assert found == expected
    assert state_equal(same, weights)
    assert {error.what for error in told} == {"the disk is full"}
    stages = {Path(str(error.where)).relative_to(disk.folder).parts[1] for error in told}
    assert ({"generators"} if generation else {"encoders", "tokens", "trials"}) <= stages
    left = entries(Store(disk.folder / "store"))
    assert all(entry.finished for entry in left)
    for entry in left:
        verify(entry.folder)
