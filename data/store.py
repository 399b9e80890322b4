"""The store: what a stage made, kept under a fingerprint of what went in.

`root/tokens/5f3a…/` holds the finished output of one stage; `root/tokens/5f3a….partial/` is where it is being made. A
stage that was killed finds its partial folder again, so it goes on where it was. The rename from one to the other is
the only moment at which output appears under its final name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from data.errors import UserError
from data.mirror import TEMPORARY, Mirror, works_for
from data.remote import MANIFEST, PARTIAL, Remote

Json: TypeAlias = "bool | int | float | str | list[Json] | tuple[Json, ...] | Mapping[str, Json] | None"

log = logging.getLogger(__name__)

# What this process has read: (path, bytes, mtime) → SHA-256. A file that changes is read again.
_digests: dict[tuple[str, int, int], str] = {}


def fingerprint(value: Json) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON (keys sorted, no white space).

    Raises ValueError on NaN and infinities, which JSON cannot carry, and TypeError on anything that is not JSON.
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits. A process reads each file once for it."""
    stat = path.stat()
    key = str(path), stat.st_size, stat.st_mtime_ns
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


@dataclass(frozen=True)
class Store:
    """A folder of finished stages; local, or one that every machine of the cluster sees under the same path.

    Args:
        place: the folder, or a URI such as `s3://bucket/folder`. Finished stages are kept there then, and brought from
            there; work goes on in a folder of each machine, in `STILLHOUSE_CACHE` or else `~/.cache/stillhouse`.
        root: another folder to work in.
    """

    root: Path
    remote: Remote | None = None

    def __init__(self, place: str | Path, root: Path | None = None) -> None:
        remote = Remote(str(place)) if "://" in str(place) else None
        if remote and root is None:
            cache = Path(os.environ.get("STILLHOUSE_CACHE", "~/.cache/stillhouse")).expanduser()
            root = cache / fingerprint(remote.uri)
        object.__setattr__(self, "remote", remote)
        # Absolute, because a Ray worker has a working directory of its own.
        object.__setattr__(self, "root", (root or Path(place)).absolute())
        if remote:
            works_for(self.root, remote)

    def __str__(self) -> str:
        return self.remote.uri if self.remote else str(self.root)

    def check(self) -> None:
        """Make the folder if it is not there. Raises UserError where nothing can be written in it."""
        if self.remote:
            self.remote.check()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise full_disk(error, self.root) or UserError(
                f"{self.root} is no folder that can be written: {error.strerror}", where="store", mend="Name another."
            ) from error

    def stage(self, name: str, version: int, inputs: Mapping[str, Json]) -> Stage:
        """The stage `name` for these inputs. Raise `version` whenever the same inputs would make something else."""
        return Stage(self.root, name, version, dict(inputs), self.remote)

    def share(self, folder: Path) -> None:
        """Copy a folder of the store that is no stage, such as a report, to where the store is kept."""
        if self.remote:
            self.remote.put(folder, folder.relative_to(self.root).as_posix())


@dataclass(frozen=True)
class Stage:
    """One piece of work whose output depends on `inputs` alone."""

    root: Path
    name: str
    version: int
    inputs: Mapping[str, Json]
    remote: Remote | None = None

    @property
    def fingerprint(self) -> str:
        """What tells this output from any other of the same stage."""
        return fingerprint({"stage": self.name, "version": self.version, "inputs": self.inputs})

    @property
    def path(self) -> Path:
        """The folder of the finished output."""
        return self.root / self.name / self.fingerprint

    @property
    def partial(self) -> Path:
        """The folder in which the output is made; the same one after a kill."""
        return self.root / self.name / f"{self.fingerprint}{PARTIAL}"

    @property
    def mirror(self) -> Mirror | None:
        """What is kept at the store's URI of what is being made; None where the store is a folder."""
        return Mirror(self.remote, self.partial) if self.remote else None

    @property
    def kept(self) -> bool:
        """Whether the finished output is where the store is kept: always, where that is a folder."""
        return self.here and (self.remote is None or kept_mark(self.path).exists())

    def alike(self, but: str) -> list[Path]:
        """The folders of finished stages whose inputs are these but for one; the newest first."""
        same = {name: value for name, value in self.inputs.items() if name != but}
        found = []
        for path in self.root.glob(f"{self.name}/*/{MANIFEST}"):
            if path.parent == self.path or path.parent.suffix == self.partial.suffix:
                continue
            told = manifest(path.parent)
            inputs = {name: value for name, value in told["inputs"].items() if name != but}
            if told["version"] == self.version and fingerprint(inputs) == fingerprint(same):
                found.append((path.stat().st_mtime_ns, path.parent))
        return [folder for _, folder in sorted(found, reverse=True)]

    @property
    def done(self) -> bool:
        """Whether the finished output is there; brought here from where the store is kept, if it is."""
        return self.here or self._fetched()

    @property
    def here(self) -> bool:
        """Whether it is in the folder that the store works in; nothing is asked of where the store is kept."""
        return (self.path / MANIFEST).is_file()

    def build(self, make: Callable[[Path], None]) -> Path:
        """The folder of the finished output, made by `make(partial)` unless it is there already.

        `make` may find what an earlier, killed call left in `partial`; it uses that or writes over it. Of several
        processes that ask at once, one makes and the others wait. Raises UserError when the disk is full or when
        finished output is damaged.
        """
        if not self.done:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if not self.done:
                    self._make(make)
                    return self.path
        self.verify()
        self._push()
        with suppress(OSError):  # where the store cannot be written, nothing is removed from it either
            os.utime(self.path / MANIFEST)  # when it was last used
        log.info("%s %s…: reused", self.name, self.fingerprint[:4])
        return self.path

    def verify(self) -> None:
        """Raise UserError, naming the file, where the finished output is not what was written."""
        verify(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from making the same; the system frees the lock when this process is killed."""
        lock = FileLock(self.root / self.name / f"{self.fingerprint}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s %s…: waiting for the process that is making it", self.name, self.fingerprint[:4])
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _make(self, make: Callable[[Path], None]) -> None:
        try:
            self.partial.mkdir(exist_ok=True)
            began = time.perf_counter()
            make(self.partial)
            seals = self._seal(time.perf_counter() - began)
        except OSError as error:
            if mendable := full_disk(error, self.partial):
                raise mendable from error
            raise
        self.partial.rename(self.path)
        _sync(self.path.parent)
        for name, (size, mtime, digest) in seals.items():
            _digests[str(self.path / name), size, mtime] = digest
        log.info("%s %s…: made", self.name, self.fingerprint[:4])
        self._push()
        if self.mirror and self.kept:
            self.mirror.clear()

    def _fetched(self) -> bool:
        return self.remote is not None and fetch(self.remote, self.path)

    def _push(self) -> None:
        if self.remote is not None:
            push(self.remote, self.path)

    def _seal(self, seconds: float) -> dict[str, tuple[int, int, str]]:
        """Bring every file to the disk and write the manifest; returns size, time and checksum of each file."""
        (self.partial / MANIFEST).unlink(missing_ok=True)  # left by a kill between manifest and rename
        for leftover in self.partial.rglob(f"*{TEMPORARY}"):
            leftover.unlink()
        files, seals = {}, {}
        for path in sorted(path for path in self.partial.rglob("*") if path.is_file()):
            name, stat = path.relative_to(self.partial).as_posix(), path.stat()
            _sync(path)
            digest = file_digest(path)
            files[name] = {"bytes": stat.st_size, "sha256": digest}
            seals[name] = stat.st_size, stat.st_mtime_ns, digest
        manifest = {
            "stage": self.name,
            "version": self.version,
            "inputs": self.inputs,
            "seconds": seconds,
            "files": files,
        }
        (self.partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        _sync(self.partial / MANIFEST)
        _sync(self.partial)
        return seals


def build_together(stages: Iterable[Stage], make: Callable[[Mapping[str, Path]], None]) -> None:
    """`Stage.build` for several stages whose output one call of `make` makes.

    `make(partials)` gets the folders of those that are to be made, by fingerprint; it is not called where there are
    none. A stage that another process makes meanwhile is left to it.
    """
    partials: dict[str, Path] = {}

    def build(remaining: list[Stage]) -> None:
        if remaining:
            stage, *others = remaining

            def enter(partial: Path) -> None:
                partials[stage.fingerprint] = partial
                build(others)

            stage.build(enter)
            if stage.fingerprint not in partials:
                build(others)
        elif partials:
            make(partials)

    # Everyone takes the locks in the same order, so that no two wait for each other.
    unique = {stage.fingerprint: stage for stage in stages}
    build([unique[name] for name in sorted(unique)])


def fetch(remote: Remote, path: Path) -> bool:
    """Bring finished output to the folder `path` from where the store is kept; False where it is not there either."""
    name, mark = path.parent.name, path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{mark}.", suffix=TEMPORARY, dir=path.parent) as here:
        folder = Path(here) / "stage"
        try:
            if not remote.fetch(name, mark, folder):
                return False
            verify(folder)
        except OSError as error:
            raise full_disk(error, path.parent) or error from error
        except UserError as error:
            if not error.where or not error.where.startswith(str(folder)):
                raise
            kept = f"{remote.uri}, {name}/{mark}"
            raise UserError(error.what, where=kept, mend="Remove it there and run again.") from None
        kept_mark(path).touch()
        with suppress(OSError):  # another process was quicker
            folder.rename(path)
    log.info("%s %s…: fetched", name, mark[:4])
    return True


def push(remote: Remote, path: Path) -> None:
    """Take finished output to where the store is kept. Where that fails, the next call tries again."""
    if kept_mark(path).exists():
        return
    name, mark = path.parent.name, path.name
    try:
        remote.push(name, mark, path)
    except UserError as error:
        log.warning("%s %s…: %s", name, mark[:4], error)
    else:
        kept_mark(path).touch()


def kept_mark(folder: Path) -> Path:
    """The file that says of finished output that it is at the store's URI as well."""
    return folder.with_name(f"{folder.name}.kept")


def manifest(folder: Path) -> dict[str, Any]:
    """What is written about a finished stage.

    `stage`, `version`, `inputs`, `files` (name → `bytes`, `sha256`), and the wall `seconds` of the call that ended it.
    """
    try:
        value: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return value
    except FileNotFoundError:
        raise UserError(
            "this is no finished stage: it has no manifest.json", where=str(folder), mend="Prepare it again."
        ) from None
    except ValueError:
        raise _damaged(folder, MANIFEST, "cannot be read") from None


def verify(folder: Path) -> None:
    """Check a finished stage before it is read: sizes every time, checksums once per process and file.

    Raises UserError naming the damaged file and what to do.
    """
    for name, expected in manifest(folder)["files"].items():
        path = folder / name
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise _damaged(folder, name, "is missing") from None
        if stat.st_size != expected["bytes"]:
            raise _damaged(folder, name, f"has {stat.st_size:,} bytes, {expected['bytes']:,} were written")
        if file_digest(path) != expected["sha256"]:
            raise _damaged(folder, name, "does not have the checksum that was written")


def full_disk(error: OSError, folder: Path) -> UserError | None:
    """A UserError if `error` says that the disk (or the user's share of it) is full, else None."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return UserError("the disk is full", where=str(folder), mend="Free some space and run again: it goes on from here.")


def _damaged(folder: Path, name: str, how: str) -> UserError:
    return UserError(
        f"this file of a finished stage {how}",
        where=str(folder / name),
        mend=f"Delete the folder {folder} and run again.",
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
