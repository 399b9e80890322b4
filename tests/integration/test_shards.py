"""Pins: shards that Ray workers make are those made in one process; a killed driver's shards are kept; nothing hangs,
and what can never be scheduled is refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data import Shard, Store, TokenShards, UserError, load, rank, run_shards, tokenize

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def connected() -> None:
    import ray

    assert ray.is_initialized()


def never() -> None:
    pytest.fail("asked for Ray with nothing to do")


def shards_of(folder: Path, count: int) -> list[Shard]:
    return [Shard(folder, number) for number in range(count)]


class Square:
    """Makes the square of the shard's number, and tells which process made it."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, shard: Shard) -> pa.Table:
        time.sleep(self.seconds)
        return pa.table({"square": [shard.number**2], "process": [os.getpid()]})


class Fails:
    """Fails as it is told: while it is built, or at shard 1."""

    def __init__(self, how: str) -> None:
        self.how = how
        if how == "start":
            raise UserError("no model", where="encoder.model", mend="Name one.")

    def __call__(self, shard: Shard) -> pa.Table:
        if shard.number == 1 and self.how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if shard.number == 1 and self.how == "bug":
            raise ZeroDivisionError("a bug of ours")
        return pa.table({"shard": [shard.number]})


def read(folder: Path, shard: int) -> dict[str, list[int]]:
    content: dict[str, list[int]] = (
        pa.ipc.open_file(pa.memory_map(str(Shard(folder, shard).path))).read_all().to_pydict()
    )
    return content


@pytest.mark.timeout(120)
def test_two_workers_share_the_shards_and_hold_every_cpu(ray_session: None, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    arguments = {"seconds": 0.2}
    run_shards(
        shards_of(tmp_path, 12), Square, arguments, concurrency=2, on_shard=lambda *n: told.append(n), connect=connected
    )
    assert told == [(done, 12) for done in range(13)]
    assert [read(tmp_path, shard)["square"] for shard in range(12)] == [[shard**2] for shard in range(12)]
    assert len({read(tmp_path, shard)["process"][0] for shard in range(12)}) == 2
    assert len(list(tmp_path.iterdir())) == 12
    run_shards(shards_of(tmp_path, 12), Square, arguments, connect=never)


@pytest.mark.timeout(120)
def test_makes_the_missing_shards_only(ray_session: None, tmp_path: Path) -> None:
    run_shards(shards_of(tmp_path, 6), Square, {})
    for shard in (1, 4):
        Shard(tmp_path, shard).path.unlink()
    path = Shard(tmp_path, 5).path
    path.write_bytes(path.read_bytes()[:-10])
    run_shards(shards_of(tmp_path, 6), Square, {}, connect=connected)
    made_elsewhere = [shard for shard in range(6) if read(tmp_path, shard)["process"] != [os.getpid()]]
    assert made_elsewhere == [1, 4, 5]


@pytest.mark.timeout(120)
def test_a_user_error_arrives_as_one(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run_shards(shards_of(tmp_path / "a", 3), Fails, {"how": "start"}, connect=connected)
    assert (error.value.what, error.value.where, error.value.mend) == ("no model", "encoder.model", "Name one.")
    with pytest.raises(UserError, match="the disk is full"):
        run_shards(shards_of(tmp_path / "b", 3), Fails, {"how": "full"}, connect=connected)
    assert not Shard(tmp_path / "b", 1).path.exists()


@pytest.mark.timeout(120)
def test_a_bug_keeps_its_traceback(ray_session: None, tmp_path: Path) -> None:
    import ray

    with pytest.raises(ray.exceptions.RayError, match="a bug of ours"):
        run_shards(shards_of(tmp_path, 3), Fails, {"how": "bug"}, connect=connected)


def test_refuses_what_can_never_be_scheduled(ray_session: None, tmp_path: Path) -> None:
    def told(**resources: float) -> str:
        with pytest.raises(UserError) as error:
            run_shards(shards_of(tmp_path, 3), Square, {}, connect=connected, **resources)  # type: ignore[arg-type]
        return str(error.value)

    rest = "(machines: 2 CPU and 0 GPU). Ask for fewer or smaller workers, or add machines."
    assert told(concurrency=3) == (
        f"3 Ray worker(s) of 1 CPU and 0 GPU each can never start: the cluster has room for 2 {rest}"
    )
    assert told(num_cpus=3) == (
        f"1 Ray worker(s) of 3 CPU and 0 GPU each can never start: the cluster has room for 0 {rest}"
    )
    assert told(num_gpus=0.5) == (
        f"1 Ray worker(s) of 1 CPU and 0.5 GPU each can never start: the cluster has room for 0 {rest}"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(120)
def test_tokens_and_ranks_are_those_of_one_process(
    ray_session: None, scifact: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    store = Store(tmp_path)
    collection = load(store, "beir", scifact)
    shards = tokenize(store, collection, "queries", tokenizer_folder, "wp", 24, connected, shard_rows=100)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    texts = collection.queries["text"].to_pylist()
    expected = [tokenizer(text, truncation=True, max_length=24)["input_ids"] for text in texts]
    assert [row.tolist() for row in shards.take(range(len(shards)))] == expected
    assert len(list(shards.folder.glob("part-*.arrow"))) == 12
    again = tokenize(store, collection, "queries", tokenizer_folder, "wp", 24, never, shard_rows=100)
    assert again.folder == shards.folder

    rows = np.unique(collection.qrels["test"].query_row)
    ranked = rank(store, collection, rows, 100, connected)
    assert ranked.tolist() == rank(Store(tmp_path / "other"), collection, rows, 100).tolist()
    first = {(query, doc) for query, found in zip(rows.tolist(), ranked[:, :10].tolist(), strict=True) for doc in found}
    test = collection.qrels["test"]
    hits = sum(pair in first for pair in zip(test.query_row.tolist(), test.doc_row.tolist(), strict=True))
    assert hits / len(test) > 0.7  # 0.76; rows in the wrong order would find next to none


# A driver that is killed, as by the machine's owner, as soon as it hears of the second finished shard.
DRIVER = """
import os, signal, sys
from data import Store, load, tokenize

def connect() -> None:
    import ray
    ray.init(address=sys.argv[4], log_to_driver=False, logging_level="ERROR",
             runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}})

def kill(done: int, total: int) -> None:
    if done >= 2:
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(sys.argv[1])
collection = load(store, "beir", sys.argv[2])
tokenize(store, collection, "documents", sys.argv[3], "wp", 200, connect, shard_rows=300, concurrency=1, on_shard=kill)
"""


@pytest.mark.timeout(240)
def test_goes_on_after_the_driver_was_killed(
    ray_session: None, scifact: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    import ray

    total = 18
    command = [sys.executable, "-c", DRIVER, str(tmp_path), str(scifact), str(tokenizer_folder)]
    command.append(ray.get_runtime_context().gcs_address)
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr.decode()
    # Ray ends the killed driver's worker within seconds, but may count its CPU as taken for minutes. A worker that
    # lived on would be through with what it was given.
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    [partial] = (tmp_path / "tokens").glob("*.partial")
    kept = {path.name: path.stat().st_ino for path in partial.glob("part-*.arrow")}
    assert 2 <= len(kept) < total

    told: list[tuple[int, int]] = []
    store = Store(tmp_path)
    collection = load(store, "beir", scifact)
    shards = tokenize(
        store, collection, "documents", tokenizer_folder, "wp", 200, connected, shard_rows=300, concurrency=1,
        on_shard=lambda *n: told.append(n),
    )  # fmt: skip
    assert told == [(done, total) for done in range(len(kept), total + 1)]
    assert {name: (shards.folder / name).stat().st_ino for name in kept} == kept
    whole = tokenize(Store(tmp_path / "other"), collection, "documents", tokenizer_folder, "wp", 200)
    assert np.array_equal(shards.lengths, whole.lengths)
    rows = np.arange(0, len(whole), 7)
    assert all(np.array_equal(a, b) for a, b in zip(shards.take(rows), whole.take(rows), strict=True))
    assert shards.truncated == whole.truncated

    cut = Shard(shards.folder, 3).path
    del shards
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"part-00003\.arrow: this file of a finished stage has"):
        TokenShards(cut.parent)
