"""Pins: where vectors are made (one worker that would have this whole machine is no process of its own), that they are
those of the encoder, made once, and that the evaluation has its queries in fp32, whatever it is for documents.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flow

from data import Stage
from orchestrator import cluster, embeddings, shards
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.config import load
from orchestrator.embeddings import VectorsByRow, VectorSet, embed
from orchestrator.evaluation import evaluate_all, untrained
from orchestrator.workspace import Workspace


class AskedError(Exception):
    """Ends the encoding once it has asked for its shards."""


@pytest.fixture
def workspace(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Workspace:
    return Workspace(load(tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)))


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
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    asked: list[Any] = []

    def run_shards(*arguments: Any, connect: Any, **named: Any) -> None:
        asked.append(connect)
        raise AskedError

    monkeypatch.setattr(shards, "run_shards", run_shards)

    def connect() -> None:
        raise AssertionError

    wanted = [VectorSet(workspace.starting_model, workspace.tokens.documents, "fp32")]
    with pytest.raises(AskedError):
        embed(workspace.store, wanted, worker, there, connect)
    assert asked == [None if here else connect]


def test_the_vectors_are_the_encoders_and_made_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embeddings, "SHARD_TEXTS", 16)
    rows = np.array([7, 3, 30, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18])
    model, tokens = workspace.starting_model, workspace.tokens
    wanted = [VectorSet(model, tokens.documents, "bf16", 50), VectorSet(model, tokens.queries, "fp32", 50, rows)]
    made: list[tuple[int, int]] = []
    size, there = WorkerSize(1, 0.0), Resources(1, 0.0, 1, 0.0)
    # What is wanted twice is made once.
    documents, queries, again = embed(
        workspace.store, [*wanted, wanted[1]], size, there, None, lambda done, total: made.append((done, total))
    )
    assert queries == again
    assert made[-1] == (4 + 2, 4 + 2)  # of 60 documents and of 17 queries, 16 a shard
    encoder = workspace.load_encoder()
    for folder, each, texts in (
        (documents, wanted[0], tokens.documents.take(range(60))),
        (queries, wanted[1], tokens.queries.take(rows)),
    ):
        vectors = np.concatenate([shard.open() for shard in embeddings.stored(folder)])
        encoding = workspace.encoding(each.precision, 50)
        for start in range(0, len(texts), 16):
            expected = encoding.embed(encoder, texts[start : start + 16]).numpy()
            np.testing.assert_array_equal(vectors[start : start + 16], expected)
    cost = embeddings.cost([documents, queries], "mining", "a")
    lengths = [*tokens.documents.lengths, *tokens.queries.lengths[rows]]
    assert (cost.stage, cost.recipe, cost.examples, cost.tokens) == ("mining", "a", 77, sum(lengths))
    assert cost.device_seconds == pytest.approx(cost.devices * cost.wall_seconds)

    def make(*arguments: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(shards, "run_shards", make)
    assert embed(workspace.store, wanted, size, there, None) == [documents, queries]


def test_vectors_by_row(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SHARD_TEXTS", 16)
    model, tokens, chosen = workspace.starting_model, workspace.tokens, np.arange(1, 50, 2)
    wanted = [VectorSet(model, tokens.documents, "fp32"), VectorSet(model, tokens.queries, "fp32", None, chosen)]
    folders = embed(workspace.store, wanted, WorkerSize(1, 0.0), Resources(1, 0.0, 1, 0.0), None)
    documents, queries = VectorsByRow(folders[0]), VectorsByRow(folders[1], chosen)
    rows = np.array([[59, 0, 16], [15, 59, 31]])
    np.testing.assert_array_equal(documents.take(rows), embeddings.opened(folders[0])[rows])
    np.testing.assert_array_equal(queries.take(np.array([49, 1, 33])), embeddings.opened(folders[1])[[24, 0, 16]])
    assert documents.take(np.empty((0, 3), np.int64)).shape == (0, 3, 32)
    for missing in (0, 48, 50):
        with pytest.raises(KeyError):
            queries.take(np.array([1, missing]))


def test_what_is_wanted_is_named_by_all_that_it_depends_on(workspace: Workspace) -> None:
    model, tokens, store = workspace.starting_model, workspace.tokens, workspace.store

    def of(*arguments: Any) -> str:
        return VectorSet(*arguments).stage(store).fingerprint

    names = [
        of(model, tokens.documents, "bf16"),
        of(model, tokens.queries, "bf16"),
        of(model, tokens.documents, "fp32"),
        of(model, tokens.documents, "bf16", 100),
        of(model, tokens.documents, "bf16", None, np.array([1, 2])),
        of(model, tokens.documents, "bf16", None, np.array([2, 1])),
    ]
    assert len(set(names)) == len(names)
    experiment = workspace.experiment
    for changes in ({"layers": (1,)}, {"pooling": "cls"}, {"normalize": False}):
        encoder = experiment.encoder.model_copy(update=changes)
        other = Workspace(experiment.model_copy(update={"encoder": encoder}))
        assert other.starting_model.fingerprint != model.fingerprint


def test_token_shards_travel_as_a_path(workspace: Workspace) -> None:
    tokens = workspace.tokens.documents
    packed = pickle.dumps(tokens)
    assert len(packed) < 1000
    copy = pickle.loads(packed)  # noqa: S301
    assert [row.tolist() for row in copy.take([5, 1])] == [row.tolist() for row in tokens.take([5, 1])]


def test_the_evaluation_encodes_its_queries_in_fp32(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "resources", lambda: Resources(1, 0.0, 1, 0.0))
    training = workspace.experiment.training.model_copy(update={"precision": "bf16"})
    workspace = Workspace(workspace.experiment.model_copy(update={"training": training}))
    evaluate_all(workspace, {"untrained": untrained(workspace)})
    rows = np.unique(workspace.test_qrels.query_row)
    for tokens, chosen, precision in (("documents", None, "bf16"), ("queries", rows, "fp32")):
        wanted = VectorSet(workspace.starting_model, getattr(workspace.tokens, tokens), precision, None, chosen)
        assert wanted.stage(workspace.store).done
    assert sum(1 for folder in _embeddings(wanted.stage(workspace.store)).iterdir() if folder.is_dir()) == 2


def _embeddings(stage: Stage) -> Path:
    return stage.path.parent
