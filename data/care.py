"""Looking after a store: what is in it, whether it is sound, and what may go."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data.errors import UserError
from data.remote import MANIFEST, PARTIAL
from data.store import Store, kept_mark, manifest, verify

FINGERPRINT = re.compile(r"[0-9a-f]{16}")
REMOVED = ".removed"


@dataclass(frozen=True)
class Entry:
    """The output of a stage: finished, or what a call that has not ended left; `used` is when it was last, in seconds
    since the epoch, and `seconds` how long the call took that ended it.
    """

    stage: str
    fingerprint: str
    folder: Path | None  # None where it is kept at a URI
    bytes: int
    used: float
    seconds: float | None

    @property
    def finished(self) -> bool:
        """Whether it is complete."""
        return self.seconds is not None


def entries(store: Store) -> list[Entry]:
    """All output in the store, by stage and fingerprint; what is kept at its URI, if it has one.

    Raises UserError where there is no such folder.
    """
    if store.remote:
        listed = [
            Entry(kept.stage, kept.fingerprint, None, kept.bytes, kept.written, kept.manifest["seconds"])
            for kept in store.remote.kept()
        ]
        return listed + [
            Entry(stage, name, None, size, written, None) for stage, name, size, written in store.remote.begun()
        ]
    if not store.root.is_dir():
        raise UserError("no such folder", where=str(store.root), mend="Name the store: --store FOLDER.")
    found = []
    for folder in sorted(store.root.glob("*/*")):
        name = folder.name.removesuffix(PARTIAL)
        if FINGERPRINT.fullmatch(name) and folder.is_dir():
            files = [path.stat() for path in folder.rglob("*") if path.is_file()]
            finished = name == folder.name
            used = (folder / MANIFEST).stat().st_mtime if finished else max((s.st_mtime for s in files), default=0.0)
            seconds = manifest(folder)["seconds"] if finished else None
            found.append(Entry(folder.parent.name, name, folder, sum(s.st_size for s in files), used, seconds))
    return found


def damaged(store: Store, found: list[Entry]) -> Iterator[tuple[Entry, UserError]]:
    """Those that are finished and not what was written; every checksum is computed."""
    for entry in found:
        if entry.finished:
            try:
                if entry.folder:
                    verify(entry.folder)
                else:
                    _verify_kept(store, entry)
            except UserError as error:
                yield entry, error


def _verify_kept(store: Store, entry: Entry) -> None:
    assert store.remote is not None
    with tempfile.TemporaryDirectory() as here:
        folder = Path(here) / "stage"
        store.remote.fetch(entry.stage, entry.fingerprint, folder)
        try:
            verify(folder)
        except UserError as error:
            file = Path(error.where or "").name
            where = f"{store.remote.uri}, {entry.stage}/{entry.fingerprint}/{file}"
            raise UserError(error.what, where=where, mend="Remove it there and run again.") from None


def unused(store: Store, found: list[Entry], since: float) -> list[Entry]:
    """Those last used before `since`, in seconds since the epoch, but for those that a report of the store names."""
    reports = store.remote.reports() if store.remote else map(Path.read_text, store.root.glob("reports/*/*.json"))
    named = {name for report in reports for name in FINGERPRINT.findall(report)}
    return [entry for entry in found if entry.used < since and entry.fingerprint not in named]


def remove(store: Store, found: list[Entry]) -> list[Entry]:
    """Remove them; returns those that went. One that a process is making stays.

    A folder loses its name before its files, so that none is ever half there; what a kill leaves goes the next time.
    """
    gone = []
    for entry in found:
        if entry.folder is None:
            assert store.remote is not None
            if not entry.finished:
                store.remote.remove_folder(f"{entry.stage}/{entry.fingerprint}{PARTIAL}")
                gone.append(entry)
                continue
            store.remote.remove(entry.stage, entry.fingerprint)
            kept_mark(store.root / entry.stage / entry.fingerprint).unlink(missing_ok=True)
            gone.append(entry)
            continue
        lock = FileLock(entry.folder.parent / f"{entry.fingerprint}.lock")
        try:
            with lock.acquire(timeout=0):
                entry.folder.rename(entry.folder.with_name(f"{entry.folder.name}{REMOVED}"))
        except (Timeout, FileNotFoundError):
            continue
        gone.append(entry)
    for folder in store.root.glob(f"*/*{REMOVED}"):
        shutil.rmtree(folder, ignore_errors=True)
    return gone
