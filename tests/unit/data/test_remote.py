"""A store at a URI: what one machine has made another finds, whole or not at all, in a folder, in memory and in S3;
what fails on the way is told, and nothing is lost by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import Stage, Store, UserError
from data.care import damaged, entries, remove, unused
from data.remote import Remote


@pytest.fixture(params=["file", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3")).format(tmp_path.name)
    return f"{request.param}://{tmp_path}/kept"


Machine = Callable[[str], Store]


@pytest.fixture
def machine(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of that name: its folder, and the store at the URI."""

    def on(name: str) -> Store:
        monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "machines" / name))
        return Store(uri)

    return on


def letters(store: Store, content: str = "a") -> Stage:
    return store.stage("letters", 1, {"content": content})


def test_a_stage_of_files_without_folders(machine: Machine) -> None:
    letters(machine("one")).build(lambda partial: (partial / "letter.txt").write_text("a") and None)
    assert (letters(machine("two")).build(never) / "letter.txt").read_text() == "a"
    assert list(damaged(machine("three"), entries(machine("three")))) == []


def write(content: str = "a") -> Callable[[Path], None]:
    def make(partial: Path) -> None:
        (partial / "deep").mkdir(exist_ok=True)
        (partial / "deep" / "letter.txt").write_text(content)
        (partial / "other.txt").write_text(content * 3)

    return make


def never(partial: Path) -> None:
    raise AssertionError


def test_what_one_machine_has_made_another_finds(machine: Machine) -> None:
    first = machine("one")
    assert not letters(first).done
    made = letters(first).build(write())
    second = machine("two")
    assert second.root != first.root
    stage = letters(second)
    assert not stage.path.exists()
    assert stage.done
    folder = stage.build(never)
    assert folder == stage.path != made
    assert (folder / "deep" / "letter.txt").read_text() == "a"
    assert (folder / "manifest.json").read_text() == (made / "manifest.json").read_text()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.kept"]
    assert not letters(second, "b").done


def test_a_store_and_its_stages_travel(machine: Machine) -> None:
    import pickle

    store = machine("one")
    letters(store).build(write())
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - as Ray does it
    assert (copy, hash(copy)) == (store, hash(store))
    assert str(store) == store.remote.uri
    assert Store(str(store)) == store
    letters(copy).build(never)


def test_of_two_the_first_is_kept(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    letters(two).build(lambda partial: letters(one).build(write()) and write()(partial))
    assert letters(machine("three")).build(never).joinpath("other.txt").read_text() == "aaa"
    assert len(one.remote.kept()) == 1


def test_what_was_cut_off_is_not_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Remote, path: str, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            letters(machine("one")).build(write())
    assert not letters(machine("two")).done
    assert machine("two").remote.kept() == []
    letters(machine("one")).build(never)  # it is there on the machine that made it, and goes on its way now
    letters(machine("three")).build(never)


def test_where_it_cannot_be_reached_the_work_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(self: Remote, *_: Any) -> None:
        raise OSError("the cable is out")

    one = machine("one")
    with monkeypatch.context() as patch, caplog.at_level("WARNING"):
        patch.setattr(Remote, "_copy_there", lost)
        letters(one).build(write())
    assert "cannot be used: the cable is out" in caplog.text
    assert not letters(machine("two")).done
    letters(one).build(never)
    letters(machine("two")).build(never)


def test_what_was_damaged_is_told(machine: Machine, uri: str) -> None:
    store = machine("one")
    for content in "ab":
        letters(store, content).build(write(content))
    remote = store.remote
    (pointer,) = [kept.manifest for kept in remote.kept() if kept.fingerprint == letters(store).fingerprint]
    place = f"{remote._base}/letters/{letters(store).fingerprint}/{pointer['attempt']}/other.txt"
    remote._write(place, b"axa")
    with pytest.raises(UserError) as refused:
        letters(machine("two")).build(never)
    what = f"{uri}, letters/{letters(store).fingerprint}: this file of a finished stage does not have the checksum"
    assert str(refused.value).startswith(what)
    assert "Remove it there and run again." in str(refused.value)
    letters(machine("two"), "b").build(never)
    ((entry, error),) = damaged(store, entries(store))
    assert (entry.fingerprint, "other.txt" in str(error.where)) == (letters(store).fingerprint, True)


def test_what_is_kept_is_listed_and_goes(machine: Machine) -> None:
    store = machine("one")
    for content in ("a", "bb"):
        letters(store, content).build(write(content))
    listed = {entry.fingerprint: entry for entry in entries(machine("two"))}
    assert set(listed) == {letters(store, content).fingerprint for content in ("a", "bb")}
    sizes = {sum(p.stat().st_size for p in letters(store, c).path.rglob("*") if p.is_file()) for c in ("a", "bb")}
    assert {entry.bytes for entry in listed.values()} == sizes
    assert all(entry.finished and entry.stage == "letters" for entry in listed.values())
    report = store.root / "reports" / "r"
    report.mkdir(parents=True)
    (report / "comparison.json").write_text(json.dumps({"uses": letters(store).fingerprint}))
    store.share(report)
    later = max(entry.used for entry in listed.values()) + 1
    chosen = unused(machine("two"), list(listed.values()), later)
    assert [entry.fingerprint for entry in chosen] == [letters(store, "bb").fingerprint]
    assert unused(machine("two"), list(listed.values()), later - 1e6) == []
    remove(store, chosen)
    assert [entry.fingerprint for entry in entries(store)] == [letters(store).fingerprint]
    assert not letters(machine("two"), "bb").done
    letters(machine("one"), "bb").build(never)  # where it was made it is still, and it is kept again
    assert letters(machine("two"), "bb").done


def test_check(machine: Machine) -> None:
    machine("one").check()
    assert entries(machine("one")) == []


def test_a_place_that_cannot_be_used(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path))
    for uri in ("nothing://x/y", s3.format("x").replace("bucket", "elsewhere", 1).replace("allow_bucket", "no_bucket")):
        with pytest.raises(UserError) as refused:
            Store(uri).check()
        assert str(refused.value).startswith(f"store: {uri} cannot be used: ")
        assert "\n" not in str(refused.value)
        assert "See to the address, the credentials and the network, or name a folder." in str(refused.value)
