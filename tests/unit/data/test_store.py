"""Pins: output appears whole or not at all, is made once however many ask, and damage is found before it is read."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from data import Stage, Store, UserError, build_together, file_digest, fingerprint

ROOT = Path(__file__).parents[3]

# A process that makes a stage of three files, one at a time, and stops for long before the file it is told to.
MAKE = """
import sys, time
from pathlib import Path
from data import Store

def make(folder: Path) -> None:
    with open(sys.argv[2], "a") as calls:
        calls.write("called\\n")
    for name in "abc":
        if not (folder / name).exists():
            if name == sys.argv[3]:
                print("waiting", flush=True)
                time.sleep(float(sys.argv[4]))
            (folder / name).write_text(name)

Store(sys.argv[1]).stage("letters", 1, {"n": 3}).build(make)
"""


def start(root: Path, stop_before: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, str(root), str(root / "calls"), stop_before, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def letters(root: Path) -> Stage:
    return Store(root).stage("letters", 1, {"n": 3})


def write_letters(folder: Path) -> None:
    (folder / "sub").mkdir(exist_ok=True)
    for name in ("a", "b", "sub/c"):
        (folder / name).write_text(name)


def test_fingerprint() -> None:
    value = {"b": [1, 2.5, None], "a": "ü"}
    expected = hashlib.sha256('{"a":"ü","b":[1,2.5,null]}'.encode()).hexdigest()[:16]
    assert fingerprint(value) == fingerprint({"a": "ü", "b": (1, 2.5, None)}) == expected
    with pytest.raises(ValueError):
        fingerprint(float("nan"))


def test_every_input_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stages = [
        store.stage("a", 1, {"x": 1}),
        store.stage("b", 1, {"x": 1}),
        store.stage("a", 2, {"x": 1}),
        store.stage("a", 1, {"x": 2}),
        store.stage("a", 1, {"x": 1, "y": None}),
    ]
    assert len({stage.fingerprint for stage in stages}) == 5
    assert stages[0].path == tmp_path / "a" / stages[0].fingerprint


def test_build_writes_a_manifest_and_reuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = letters(tmp_path)
    assert not stage.done
    with caplog.at_level(logging.INFO):
        assert stage.build(write_letters) == stage.path
        assert stage.build(lambda folder: pytest.fail("made twice")) == stage.path
    short = stage.fingerprint[:4]
    assert [record.getMessage() for record in caplog.records] == [
        f"letters {short}…: made",
        f"letters {short}…: reused",
    ]
    assert stage.done
    assert not stage.partial.exists()
    manifest = json.loads((stage.path / "manifest.json").read_text())
    assert (manifest["stage"], manifest["version"], manifest["inputs"]) == ("letters", 1, {"n": 3})
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {"a": 1, "b": 1, "sub/c": 5}
    assert manifest["files"]["a"]["sha256"] == hashlib.sha256(b"a").hexdigest() == file_digest(stage.path / "a")


def test_a_failed_make_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a").write_text("a")
        raise RuntimeError("bug")

    stage = letters(tmp_path)
    with pytest.raises(RuntimeError, match="bug"):
        stage.build(fail)
    assert not stage.path.exists()
    assert (stage.partial / "a").exists()
    stage.build(write_letters)  # the lock is free again
    assert stage.done


def test_half_written_files_are_swept_out(tmp_path: Path) -> None:
    stage = letters(tmp_path)
    stage.partial.mkdir(parents=True)
    (stage.partial / "a.17.tmp").write_text("half")
    (stage.partial / "manifest.json").write_text("left by a kill just before the rename")
    stage.build(write_letters)
    assert sorted(path.name for path in stage.path.iterdir()) == ["a", "b", "manifest.json", "sub"]
    stage.verify()


def test_killed_half_way_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "c", 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    stage = letters(tmp_path)
    assert not stage.path.exists()
    found = []

    def make(folder: Path) -> None:
        found.extend(sorted(path.name for path in folder.iterdir()))
        (folder / "c").write_text("c")

    stage.build(make)
    assert found == ["a", "b"]
    assert {name for name in "abc" if (stage.path / name).read_text() == name} == {"a", "b", "c"}


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    first = start(tmp_path, "b", 1)
    assert first.stdout is not None
    assert first.stdout.readline() == "waiting\n"
    second = start(tmp_path, "b", 1)
    assert (first.wait(30), second.wait(30)) == (0, 0)
    assert (tmp_path / "calls").read_text() == "called\n"
    assert letters(tmp_path).done


def damaged(stage: Stage, name: str, how: str) -> str:
    return f"{stage.path / name}: this file of a finished stage {how}. Delete the folder {stage.path} and run again."


def test_damage_is_found(tmp_path: Path) -> None:
    stage = letters(tmp_path)
    stage.build(write_letters)

    def told() -> str:
        with pytest.raises(UserError) as error:
            stage.build(lambda folder: pytest.fail("made twice"))
        return str(error.value)

    (stage.path / "b").write_text("bb")
    assert told() == damaged(stage, "b", "has 2 bytes, 1 were written")
    time.sleep(0.02)  # so that the file's time is another one
    (stage.path / "b").write_text("x")
    assert told() == damaged(stage, "b", "does not have the checksum that was written")
    (stage.path / "b").unlink()
    assert told() == damaged(stage, "b", "is missing")
    (stage.path / "manifest.json").write_text("{")
    assert told() == damaged(stage, "manifest.json", "cannot be read")


def test_verify_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this is no finished stage: it has no manifest\.json"):
        letters(tmp_path).verify()


def test_checksums_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = letters(tmp_path)
    stage.build(write_letters)
    # Another process opens it: nothing is known of its files yet.
    monkeypatch.setattr("data.store._digests", {})
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: read.append(Path(file.name).name) or digest(file, kind)
    )
    stage.verify()
    stage.verify()
    assert file_digest(stage.path / "a") == hashlib.sha256(b"a").hexdigest()
    assert sorted(read) == ["a", "b", "c"]
    time.sleep(0.02)  # so that the file's time is another one
    (stage.path / "b").write_text("b")
    stage.verify()
    assert read.count("b") == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path: Path, number: int) -> None:
    def fill(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    stage = letters(tmp_path)
    with pytest.raises(UserError) as error:
        stage.build(fill)
    assert str(error.value) == (
        f"{stage.partial}: the disk is full. Free some space and run again: it goes on from here."
    )
    assert not stage.path.exists()


def test_other_system_errors_keep_their_traceback(tmp_path: Path) -> None:
    def forbid(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        letters(tmp_path).build(forbid)


class Together:
    """Threads that make stages together, each file of a stage with the stage's name in it."""

    def __init__(self, root: Path) -> None:
        self.stages = [Store(root).stage(name, 1, {}) for name in ("x", "y", "z")]
        self.made: list[list[str]] = []

    def make(self, partials: Mapping[str, Path]) -> None:
        names = {stage.fingerprint: stage.name for stage in self.stages}
        self.made.append(sorted(names[each] for each in partials))
        for each, partial in partials.items():
            (partial / "name").write_text(names[each])

    def check(self) -> None:
        assert [(stage.path / "name").read_text() for stage in self.stages] == ["x", "y", "z"]
        assert sorted(name for names in self.made for name in names) == ["x", "y", "z"]


def test_together_makes_what_another_process_has_not_made_meanwhile(tmp_path: Path) -> None:
    together, begun, go = Together(tmp_path), Event(), Event()
    for stage in together.stages:
        root = tmp_path / stage.name
        together.stages = [Store(root).stage(name, 1, {}) for name in ("x", "y", "z")]
        together.made = []
        begun.clear()
        go.clear()
        other = next(each for each in together.stages if each.name == stage.name)

        def slowly(partial: Path, other: Stage = other) -> None:
            begun.set()
            assert go.wait(30)
            together.make({other.fingerprint: partial})

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(other.build, slowly)
            assert begun.wait(30)
            second = pool.submit(build_together, together.stages, together.make)
            time.sleep(0.2)  # until it waits for the lock
            go.set()
            first.result(30)
            second.result(30)
        together.check()
        assert together.made[0] == [other.name]


def test_together_in_any_order_nobody_waits_for_ever(tmp_path: Path) -> None:
    for number in range(20):
        together = Together(tmp_path / str(number))
        with ThreadPoolExecutor(2) as pool:
            calls = [
                pool.submit(build_together, stages, together.make)
                for stages in (together.stages, together.stages[::-1])
            ]
            for call in calls:
                call.result(30)
        together.check()


def test_together_nothing(tmp_path: Path) -> None:
    made: list[object] = []
    build_together([], made.append)
    assert made == []
