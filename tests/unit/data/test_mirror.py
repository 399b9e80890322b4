"""Work under way at a URI, pinned: what one machine has made another goes on with; half of it, or what is damaged, is
not used; nothing of it is done for a store in a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data import Shard, Stage, Store, UserError, run_shards
from data.care import damaged, entries, remove, unused
from data.mirror import Mirror
from data.remote import Remote


@pytest.fixture(params=["file", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3")).format(tmp_path.name)
    return f"{request.param}://{tmp_path}/kept"


@pytest.fixture
def machine(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """A machine of that name: its folder, and the store at the URI."""

    def on(name: str) -> Store:
        monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "machines" / name))
        return Store(uri)

    return on


def begun(store: Store) -> tuple[Stage, Mirror]:
    stage = store.stage("letters", 1, {"content": "a"})
    mirror = stage.mirror
    assert mirror is not None
    stage.partial.mkdir(parents=True)
    return stage, mirror


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


def test_a_file_and_a_folder_come_back(machine: Any, tmp_path: Path) -> None:
    one, there = begun(machine("one"))
    (one.partial / "deep").mkdir()
    (one.partial / "deep" / "a").write_text("A")
    (one.partial / "deep" / "a.17.tmp").write_text("half")
    (one.partial / "b").write_text("B")
    assert there.names() == set()
    assert [there.keep(one.partial / name) for name in ("deep", "b")] == [True, True]
    two, here = begun(machine("two"))
    assert here.names() == {"deep", "b"}
    assert not here.bring("c")
    assert here.bring("deep")
    assert [path.read_text() for path in two.partial.rglob("*") if path.is_file()] == ["A"]
    (one.partial / "b").write_text("later")
    there.keep(one.partial / "b")
    assert here.bring("b")
    assert here.bring("b", tmp_path / "elsewhere")
    assert (two.partial / "b").read_text() == (tmp_path / "elsewhere").read_text() == "later"
    assert leftovers(tmp_path / "machines" / "two") == []
    shutil.rmtree(one.partial)
    one.partial.mkdir()
    assert there.keep_all("nothing")
    assert here.bring_all("nothing")
    assert list(two.partial.iterdir()) == []
    here.clear()
    assert there.names() == set()
    here.clear()


def test_a_finished_stage_leaves_nothing_under_way(machine: Any) -> None:
    one, there = begun(machine("one"))
    (one.partial / "a").write_text("A")
    there.keep(one.partial / "a")
    one.build(lambda partial: None)
    assert (there.names(), one.kept) == (set(), True)
    assert [kept.fingerprint for kept in machine("two").remote.kept()] == [one.fingerprint]


def test_what_was_left_is_listed_and_goes(machine: Any) -> None:
    one, there = begun(machine("one"))
    for content in ("12345", "123"):
        (one.partial / content).write_text(content)
        there.keep(one.partial / content)
    store = machine("two")
    finished = store.stage("letters", 1, {"content": "b"})
    finished.build(lambda partial: None)
    listed = {entry.fingerprint: entry for entry in entries(store)}
    left = listed[one.fingerprint]
    assert (len(listed), listed[finished.fingerprint].finished, left.finished) == (2, True, False)
    with there.remote.reading(f"letters/{one.partial.name}/123.tar") as stream:
        assert left.bytes == 2 * len(stream.read())  # tar fills up its blocks
    assert (left.used > 1e9) == (not there.remote.uri.startswith("memory:"))  # which has no clock
    assert unused(store, [left], left.used) == []
    assert remove(store, unused(store, [left], left.used + 1)) == [left]
    assert there.names() == set()
    assert [entry.fingerprint for entry in entries(store)] == [finished.fingerprint]
    assert list(damaged(store, entries(store))) == []


def test_the_furthest_run_is_gone_on_with(machine: Any) -> None:
    one, there = begun(machine("one"))
    for step in (10, 20):
        (one.partial / "at").write_text(str(step))
        (one.partial / f"only-{step}").write_text("")
        there.keep_run(step)
        (one.partial / f"only-{step}").unlink()
    assert there.names() == {"run-000000020"}  # the older one went
    two, here = begun(machine("two"))
    (two.partial / "stale").write_text("of another life")
    assert [here.bring_run(step) for step in (30, 20)] == [30, 20]
    assert (two.partial / "stale").exists()
    assert here.bring_run(15) == 20
    assert sorted(path.name for path in two.partial.iterdir()) == ["at", "only-20"]
    assert (two.partial / "at").read_text() == "20"
    here.keep_run(15)  # one that has come less far spoils nothing
    assert here.bring_run(0) == 20
    assert leftovers(two.root) == []


@pytest.mark.parametrize("damage", ["bytes", "half", "a file fewer"])
def test_what_is_damaged_is_not_used(machine: Any, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    one, there = begun(machine("one"))
    for name in "abc":
        (one.partial / name).write_bytes(name.encode() * 100_000)
    there.keep_run(7)
    name = f"letters/{one.partial.name}/run-000000007.tar"
    with there.remote.reading(name) as stream:
        content: bytes = stream.read()
    at = content.index(b"c" * 1000)  # in the last of the files
    header = content.rindex(b"STILLHOUSE.sha256", 0, at) // 512 * 512 - 512  # it has a block before it
    damaged = {
        "bytes": content.replace(b"c" * 1000, b"c" * 999 + b"x", 1),
        "half": content[: at + 20_000],
        "a file fewer": content[:header],
    }[damage]
    with there.remote.writing(name) as stream:
        stream.write(damaged)
    two, here = begun(machine("two"))
    assert here.bring_run(0) == 0
    assert list(two.partial.iterdir()) == []
    assert "is damaged and not used" in caplog.text
    there.keep_run(7)
    assert here.bring_run(0) == 7


def test_where_it_cannot_be_reached_the_work_goes_on(
    machine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, there = begun(machine("one"))
    (one.partial / "a").write_text("A")

    def lost(self: Remote, *_: Any) -> None:
        raise there.remote._unreachable(OSError("the cable is out"))

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "writing", lost)
        assert not there.keep(one.partial / "a")
        there.keep_run(3)
    assert "cannot be used: the cable is out" in caplog.text
    assert there.names() == set()


class Square:
    """Makes the square of the shard's number; fails at `until`."""

    def __init__(self, until: int = 99) -> None:
        self.until = until

    def __call__(self, shard: Shard) -> pa.Table:
        if shard.number == self.until:
            raise KeyboardInterrupt
        return pa.table({"square": [shard.number**2]})


def test_a_lost_machines_shards_are_not_made_again(machine: Any) -> None:
    def build(store: Store, until: int) -> list[tuple[int, int]]:
        told: list[tuple[int, int]] = []

        def make(partial: Path) -> None:
            shards = [Shard(partial / "work", number) for number in range(4)]
            run_shards(shards, Square, {"until": until}, on_shard=lambda *counts: told.append(counts))
            for shard in shards:
                shard.path.rename(partial / shard.path.name)
            shards[0].folder.rmdir()

        store.stage("squares", 1, {}).build(make)
        return told

    with pytest.raises(KeyboardInterrupt):
        build(machine("lost"), 2)
    assert build(machine("another"), 99) == [(2, 4), (3, 4), (4, 4)]
    stage = machine("third").stage("squares", 1, {})
    assert stage.done
    found = [pa.ipc.open_file(path).read_all()["square"].to_pylist() for path in sorted(stage.path.glob("part-*"))]
    assert found == [[0], [1], [4], [9]]


def test_a_store_in_a_folder_has_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("keep", "bring", "names", "clear"):
        monkeypatch.setattr(Mirror, name, never)
    store = Store(tmp_path)
    stage = store.stage("squares", 1, {})
    stage.build(lambda partial: run_shards([Shard(partial, 0)], Square, {}))
    assert stage.kept
    assert stage.mirror is None


def test_of_two_at_once_neither_spoils_the_other(machine: Any) -> None:
    one, two = begun(machine("one"))[0], begun(machine("two"))[0]

    def make(partial: Path) -> None:
        run_shards([Shard(partial, number) for number in range(3)], Square, {})

    def both(partial: Path) -> None:
        run_shards([Shard(partial, 0)], Square, {})
        two.build(make)  # finished and cleared away meanwhile
        make(partial)

    one.build(both)
    assert [path.name for path in sorted(one.path.glob("part-*"))] == [f"part-{n:05d}.arrow" for n in range(3)]
    one.verify()
    assert one.mirror is not None
    assert one.mirror.names() == set()


def test_the_driver_is_told_of_a_shard_that_does_not_come(tmp_path: Path) -> None:
    from data.sharded import _bring

    stage = Store(f"memory://{tmp_path}", tmp_path / "here").stage("squares", 1, {})
    with pytest.raises(UserError, match="does not have what a worker on another machine has made"):
        _bring(Shard(stage.partial, 0))


@pytest.fixture(autouse=True)
def _no_other_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.mirror._roots", {})
