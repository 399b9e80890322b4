"""The benchmarks still fit the code: each can be imported, and what trains and encodes for them does so.

How fast they are says nothing here; `test_counted_work.py` counts the work.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "contenders"))


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_each_can_be_imported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, file.stem, raising=False)
    module = importlib.import_module(file.stem)
    assert module.__doc__, "each says what it measures"


def test_what_trains(tmp_path: Path, tiny_model: Path) -> None:
    module = importlib.import_module("train_stillhouse")
    triples = [{"query": "asba dofi", "positive": "docba dofi", "negative": f"docdo {i}"} for i in range(40)]
    (tmp_path / "triples.json").write_text(json.dumps(triples))
    module.LENGTH = 16
    done, seconds, notes = module.runner(tmp_path, tiny_model, "fp32", 2, module.ClockedGroup)()
    assert done == 2 * module.BATCH
    assert seconds > 0
    assert np.isfinite([notes["loss"], notes["gflops"]]).all()


def test_what_encodes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("encode")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # of this process, which has other tests too
    vectors = module.stillhouse(str(tiny_model), "fp32")(["docba dofi", "docdo"])
    assert vectors.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
