"""What the tests of the whole flow share: one finished comparison, and copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_flow
from flow import Ended, Flow


@pytest.fixture
def fresh(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Flow:
    """The experiment with an empty store."""
    tiny_flow.write_experiment(tmp_path / "fresh", tiny_collection, tiny_model)
    return Flow(tmp_path / "fresh")


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Path, tiny_model: Path) -> tuple[Flow, Ended]:
    """One comparison from an empty store; not to be changed."""
    folder = tmp_path_factory.mktemp("compared")
    tiny_flow.write_experiment(folder, tiny_collection, tiny_model)
    flow = Flow(folder)
    return flow, flow.run("compare")


@pytest.fixture
def finished(compared: tuple[Flow, Ended], tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Flow:
    """A copy of the finished comparison, in another place; its MLflow database is empty."""
    folder = tmp_path / "finished"
    tiny_flow.write_experiment(folder, tiny_collection, tiny_model)
    shutil.copytree(compared[0].store, folder / "store")
    return Flow(folder)


@pytest.fixture
def prepared(finished: Flow) -> Flow:
    """A copy of the finished comparison that has tokens and no more."""
    for folder in finished.store.iterdir():
        if folder.name not in ("collection", "encoders", "tokens"):
            shutil.rmtree(folder)
    return finished
