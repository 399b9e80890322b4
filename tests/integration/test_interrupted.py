"""Pins: a comparison that is killed or interrupted at any moment goes on when it is run again, and ends with the same
numbers; each value is in MLflow once.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from flow import Ended, Flow
from in_mlflow import check_mlflow

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# A checkpoint after every step; when checkpoints are written changes no number.
EVERY_STEP = ("--set", "training.checkpoint_seconds=0")


def there(folder: Path, pattern: str) -> bool:
    """Whether something in the folder is called like that; it may be renamed while it is looked for."""
    try:
        return any(folder.glob(pattern))
    except FileNotFoundError:
        return False


@pytest.mark.timeout(300)
def test_killed_again_and_again(compared: tuple[Flow, Ended], fresh: Flow) -> None:
    store = fresh.store

    # The command alone, while it tokenizes: the queries are done, the documents are not.
    killed = fresh.run(
        "compare", *EVERY_STEP,
        until=lambda: there(store, "tokens/*/manifest.json") and there(store, "tokens/*.partial"),
        by=signal.SIGKILL,
    )  # fmt: skip
    assert killed.status == -signal.SIGKILL
    assert not there(store, "trials")

    # Everything, in the midst of the first run.
    killed = fresh.run(
        "compare", *EVERY_STEP, until=lambda: there(store, "trials/*.partial/checkpoints/step-*/state.json")
    )
    assert killed.status == -signal.SIGKILL
    assert there(store, "trials/*.partial/checkpoints/step-*/state.json")
    assert not there(store, "trials/*/trial.json")

    # Ctrl-C, when the first run is done and others are to come.
    asked = fresh.run(
        "compare", *EVERY_STEP,
        until=lambda: there(store, "trials/*/trial.json"),
        by=signal.SIGINT,
    )  # fmt: skip
    assert asked.status == 130, asked.errors
    assert asked.errors.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert "Traceback" not in asked.errors
    assert not there(store, "searches/*/manifest.json")

    # The command alone, while Ray workers encode the corpus.
    killed = fresh.run("compare", *EVERY_STEP, until=lambda: there(store, "embeddings/*.partial"), by=signal.SIGKILL)
    assert killed.status == -signal.SIGKILL
    assert not there(store, "reports")

    ended = fresh.run("compare", *EVERY_STEP)
    assert ended.status == 0, ended.errors
    assert "static-margin: 2 trial(s) reused" in ended.errors
    assert fresh.measures == compared[0].measures
    assert fresh.curves == compared[0].curves
    check_mlflow(fresh)
