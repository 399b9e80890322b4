"""Pins: what a store is said to hold; damage is found; and that nothing goes which is new, named or being made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from data import Stage, Store, UserError
from data.care import damaged, entries, remove, unused
from data.store import MANIFEST

DAY = 86_400.0


def made(store: Store, number: int, content: str = "made") -> Stage:
    stage = store.stage("things", 1, {"number": number})

    def make(partial: Path) -> None:
        (partial / "a").write_text(content)

    stage.build(make)
    return stage


def aged(stage: Stage, seconds: float) -> None:
    os.utime(stage.path / MANIFEST, (seconds, seconds))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def half(store: Store, number: int) -> Stage:
    """A stage that was killed while it was made."""
    stage = store.stage("things", 1, {"number": number})
    stage.partial.mkdir(parents=True)
    (stage.partial / "a").write_text("half")
    os.utime(stage.partial / "a", (DAY, DAY))
    return stage


def test_entries(store: Store) -> None:
    whole, part = made(store, 1, "12345"), half(store, 2)
    (store.root / "reports" / "mine").mkdir(parents=True)
    found = {entry.fingerprint: entry for entry in entries(store)}
    assert set(found) == {whole.fingerprint, part.fingerprint}
    entry = found[whole.fingerprint]
    assert (entry.stage, entry.folder, entry.finished) == ("things", whole.path, True)
    assert entry.bytes == 5 + (whole.path / MANIFEST).stat().st_size
    assert entry.seconds is not None
    assert entry.seconds >= 0
    other = found[part.fingerprint]
    assert (other.folder, other.finished, other.bytes, other.used) == (part.partial, False, 4, DAY)


def test_there_is_no_such_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such folder. Name the store: --store FOLDER."):
        entries(Store(tmp_path / "gone"))


def test_damage_is_found(store: Store) -> None:
    sound, bad = made(store, 1), made(store, 2)
    half(store, 3)
    (bad.path / "a").write_text("MADE")
    ((entry, error),) = damaged(store, entries(store))
    assert entry.folder == bad.path
    assert str(error).startswith(f"{bad.path / 'a'}: this file of a finished stage does not have the checksum")
    assert sound.path.is_dir()


def test_what_is_used_again_is_not_old(store: Store) -> None:
    stage = made(store, 1)
    aged(stage, DAY)
    assert [entry.fingerprint for entry in unused(store, entries(store), 2 * DAY)] == [stage.fingerprint]
    made(store, 1)
    assert unused(store, entries(store), 2 * DAY) == []


def test_what_a_report_names_stays(store: Store) -> None:
    named, other = made(store, 1), made(store, 2)
    for stage in (named, other):
        aged(stage, DAY)
    report = store.root / "reports" / "mine" / "comparison.json"
    report.parent.mkdir(parents=True)
    report.write_text(f'{{"model": "{named.path}/model"}}')
    gone = remove(store, unused(store, entries(store), 2 * DAY))
    assert [entry.fingerprint for entry in gone] == [other.fingerprint]
    assert named.path.is_dir()
    assert not other.path.exists()
    named.verify()
    assert made(store, 2).done, "and it can be made again"


def test_what_is_being_made_stays(store: Store) -> None:
    stage = half(store, 1)
    old = unused(store, entries(store), 2 * DAY)
    with FileLock(stage.partial.parent / f"{stage.fingerprint}.lock"):
        assert remove(store, old) == []
    assert stage.partial.is_dir()
    assert remove(store, old) == old
    assert not stage.partial.exists()


def test_a_kill_leaves_nothing_under_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = made(store, 1)

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("data.care.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(store, entries(store))
    assert not stage.done
    assert entries(store) == []
    remove(store, [])
    assert [path.name for path in stage.path.parent.iterdir()] == [f"{stage.fingerprint}.lock"]


def test_the_command(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from orchestrator import cli

    stage, bad = made(store, 1), made(store, 2)
    aged(stage, DAY)

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["stillhouse", "store", *arguments, "--store", str(store.root)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    status, out, _ = run("ls")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == sorted(
        [["things", stage.fingerprint], ["things", bad.fingerprint]]
    )
    assert run("verify")[:2] == (0, "2 of 2 are what was written\n")
    (bad.path / "a").unlink()
    status, out, err = run("verify")
    assert (status, out) == (2, "1 of 2 are what was written\n")
    assert (
        err == f"{bad.path}/a: this file of a finished stage is missing. Delete the folder {bad.path} and run again.\n"
    )
    status, out, _ = run("gc")
    assert stage.fingerprint in out
    assert bad.fingerprint not in out
    assert out.endswith("nothing is removed without --yes\n")
    assert stage.done
    assert run("gc", "--yes")[1].endswith("removed\n")
    assert not stage.done
