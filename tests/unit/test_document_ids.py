"""Pins: document ids are read where they are asked for, and travel as the path of their file."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from data import Store, load


def test_document_ids_travel_as_a_path(beir_folder: Path, tmp_path: Path) -> None:
    ids = load(Store(tmp_path / "store"), "beir", beir_folder).document_ids
    assert list(ids) == ["d1", "d2", "d3", "d4", "d5"]
    packed = pickle.dumps(ids)
    assert b"d3" not in packed
    copy = pickle.loads(packed)  # noqa: S301
    assert [len(copy), copy[np.int64(3)], copy[-1]] == [5, "d4", "d5"]
