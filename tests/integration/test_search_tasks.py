"""Pins: Ray tasks find what one process finds and what a full sort in float64 gives, to the last tie; vectors stay in
their files, and this process holds two parts at a time; what the user can mend arrives as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data import Shard, UserError
from orchestrator.search import Stored, Tasks, exact, search_shards, table
from orchestrator.search.vectors import Floats

pytestmark = pytest.mark.ray

DIMENSION, DEPTH, QUERIES = 16, 30, 25
TWO = Tasks(2, 1)


def stored(folder: Path, vectors: Floats, rows: int = 100) -> list[Stored]:
    """The vectors in files of the store's form."""
    shards = []
    for number, start in enumerate(range(0, len(vectors), rows)):
        content, path = table(vectors[start : start + rows]), Shard(folder, number).path
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
            writer.write_table(content)
        shards.append(Stored.of(path))
    return shards


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Floats, Floats, list[str], list[Stored]]:
    """Queries, documents with many copies in both halves, their ids, and the documents in 14 shards."""
    rng = np.random.default_rng(5)
    documents = rng.standard_normal((1350, DIMENSION)).astype(np.float32)
    documents[700:1300] = documents[:600]
    documents[100:180] = documents[1200:1280] = documents[3]  # ties of 160, more than there are spare places
    queries = rng.standard_normal((QUERIES, DIMENSION)).astype(np.float32)
    queries[:3] = documents[3]
    ids = [f"{i:04d}" for i in rng.permutation(len(documents))]
    return queries, documents, ids, stored(tmp_path, documents)


@pytest.mark.timeout(120)
def test_tasks_find_what_one_process_finds(ray_session: None, corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    queries, documents, ids, shards = corpus
    here = search_shards(queries, shards, DEPTH, ids=ids)
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    place = np.argsort(np.argsort(ids))
    rows = np.array([np.lexsort((-place, -line))[:DEPTH] for line in scores])
    assert (here.rows == rows).all()
    assert (here.scores == np.take_along_axis(scores, rows, axis=1)).all()

    sent: list[Any] = []
    merged: list[int] = []
    plain_put, plain_merged = ray.put, exact.merged

    def count(left: Any, right: Any, *rest: Any) -> Any:
        merged.append(left.rows.size + right.rows.size)
        return plain_merged(left, right, *rest)

    monkeypatch.setattr(ray, "put", lambda value: sent.append(value) or plain_put(value))  # type: ignore[func-returns-value]
    monkeypatch.setattr(exact, "merged", count)
    for tasks in (TWO, Tasks(5, 1)):  # more tasks than CPUs: they take turns
        found = search_shards(queries, shards, DEPTH, ids=ids, tasks=tasks)
        assert (found.rows == here.rows).all()
        assert (found.scores == here.scores).all()
    assert {value.shape for value in sent if isinstance(value, np.ndarray)} == {queries.shape, (3, DIMENSION)}
    assert len(merged) == 1 + 4
    assert max(merged) <= 2 * QUERIES * (DEPTH + exact.SPARE)


@pytest.mark.timeout(120)
def test_what_the_user_can_mend_arrives_from_a_task(ray_session: None, corpus: Any, tmp_path: Path) -> None:
    queries, documents, ids, _ = corpus
    documents[801, 2] = np.nan
    (tmp_path / "broken").mkdir()
    with pytest.raises(UserError, match="embedding of document 801 is not finite") as error:
        search_shards(queries, stored(tmp_path / "broken", documents), DEPTH, ids=ids, tasks=TWO)
    assert error.value.mend == "Training has diverged: lower training.learning_rate."


def test_the_tasks_of_a_cluster(ray_session: None) -> None:
    assert Tasks.of_cluster() == Tasks(1, 2)  # one machine of two CPUs
    assert not Tasks.pay(300, 384, 5_183)  # SciFact
    assert Tasks.pay(6_980, 384, 8_841_823)  # MS MARCO passages
