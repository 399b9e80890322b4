"""Pins: where the evaluation encodes (one worker that would have this whole machine is no process of its own), and in
what precision: queries in fp32, whatever it is for documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flow

from data import Shard
from orchestrator import evaluation
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.config import load
from orchestrator.evaluation import EncodeShard, evaluate_all, untrained_model
from orchestrator.search.vectors import COLUMN
from orchestrator.workspace import Workspace


class AskedError(Exception):
    """Ends the evaluation once it has asked for its shards."""


@pytest.mark.parametrize(
    ("worker", "there", "address", "here"),
    [
        (WorkerSize(2, 0.0), Resources(2, 0.0, 2, 0.0), None, True),
        (WorkerSize(1, 0.0), Resources(2, 0.0, 2, 0.0), None, False),  # two workers
        (WorkerSize(2, 0.0), Resources(2, 0.0, 2, 0.0), "10.0.0.1:6379", False),  # a cluster's machine
        (WorkerSize(1, 1.0), Resources(8, 1.0, 8, 1.0), None, False),
        (WorkerSize(8, 0.0), Resources(8, 1.0, 8, 1.0), None, False),  # this process would take the GPU
    ],
)
def test_where_it_encodes(
    worker: WorkerSize,
    there: Resources,
    address: str | None,
    here: bool,
    tmp_path: Path,
    tiny_collection: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    workspace = Workspace(load(tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)))
    asked: list[Any] = []

    def run_shards(*arguments: Any, connect: Any, **named: Any) -> None:
        asked.append(connect)
        raise AskedError

    monkeypatch.setattr(evaluation, "run_shards", run_shards)

    def connect() -> None:
        raise AssertionError

    with pytest.raises(AskedError):
        evaluate_all(workspace, [untrained_model(workspace, "untrained")], worker, there, connect)
    assert asked == [None if here else connect]


def test_queries_are_encoded_in_fp32(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> None:
    experiment = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)
    workspace = Workspace(load(experiment, ["training.precision=bf16"]))
    encode, encoder = EncodeShard(workspace.opened, {str(tmp_path): None}, 1), workspace.load_encoder()
    made = [np.stack(encode(Shard(tmp_path, number))[COLUMN].to_numpy()) for number in (0, 1)]
    rows = np.unique(workspace.test_qrels.query_row)
    for precision, documents, queries in (("bf16", True, False), ("fp32", False, True)):
        encoding = workspace.encoding(precision, None)
        texts = workspace.tokens.documents.take(range(60)), workspace.tokens.queries.take(rows)
        expected = [encoding.embed(encoder, sequences).numpy() for sequences in texts]
        assert [np.array_equal(a, b) for a, b in zip(made, expected, strict=True)] == [documents, queries]
