"""Work under way at a URI: what a stage has made so far, so that another machine can go on with it.

`uri/tokens/5f3a….partial/part-00003.arrow.tar` is a file of the stage's partial folder, or a folder of it: one object,
with the checksums of what is in it. It is there whole or not at all, and a damaged one is told from it and not used.
Where the URI cannot be reached the log says so, and the work goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.remote import PARTIAL, Remote

TEMPORARY = ".tmp"  # a file or folder with this suffix is half-written: it never becomes part of a stage
_OBJECT, _RUN = ".tar", "run-"
_SHA256, _END = "STILLHOUSE.sha256", ".end"  # of each file in an object; an empty one that says that all were there
_PIECE = 1 << 20

log = logging.getLogger(__name__)

# The folders in which this process works for a store at a URI.
_roots: dict[Path, Remote] = {}


def works_for(root: Path, remote: Remote) -> None:
    """Say that the folder `root` is where this machine works for the store at a URI."""
    _roots[root] = remote


def roots() -> dict[Path, Remote]:
    """The folders in which this process works for stores at URIs; none where stores are folders."""
    return _roots


def mirror_of(path: Path) -> Mirror | None:
    """The mirror of the partial folder that `path` is or lies in; None where the store is a folder."""
    for root, remote in _roots.items():
        if path.is_relative_to(root) and len(parts := path.relative_to(root).parts) > 1:
            return Mirror(remote, root.joinpath(*parts[:2])) if parts[1].endswith(PARTIAL) else None
    return None


class Mirror:
    """What is kept at a URI of a stage's partial folder."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.remote, self.folder = remote, folder
        self._place = f"{folder.parent.name}/{folder.name}"

    def names(self) -> set[str]:
        """The names of the files and folders that are kept. Raises UserError where the URI cannot be reached."""
        found = self.remote.names(self._place)
        return {name.removesuffix(_OBJECT) for name in found if name.endswith(_OBJECT)}

    def keep(self, path: Path) -> bool:
        """Take a file or a folder of the partial folder there, over what is there of it; whether that was possible."""
        return self._put(path.relative_to(self.folder).as_posix(), path.parent, _files(path))

    def bring(self, name: str, to: Path | None = None) -> bool:
        """Bring a file or a folder into the partial folder, or to another place; False where it is not there whole."""
        target = to or self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = to.parent if to else self.folder.parent  # what a kill leaves in the folder would be part of the stage
        with tempfile.TemporaryDirectory(suffix=TEMPORARY, dir=beside) as here:
            if not self._get(name, Path(here)):
                return False
            _replace(target, Path(here) / Path(name).name)
        return True

    def keep_all(self, name: str) -> bool:
        """Take all of the partial folder there as one, under a name; whether that was possible."""
        return self._put(name, self.folder, _files(self.folder))

    def bring_all(self, name: str) -> bool:
        """Replace the partial folder by what is there under a name; False where it is not there whole."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(suffix=TEMPORARY, dir=self.folder.parent) as here:
            found = Path(here) / "all"
            found.mkdir()
            if not self._get(name, found):
                return False
            _replace(self.folder, found)
        return True

    def keep_run(self, step: int) -> None:
        """Take all of the partial folder there as one: a training run as it is after `step`, in place of older ones."""
        if not self.keep_all(f"{_RUN}{step:09d}"):
            return
        with self._logged():
            self.forget(*(f"{_RUN}{older:09d}" for older in self._runs() if older < step))

    def forget_runs(self) -> None:
        """Remove all runs that `keep_run` has taken there; a failure is logged."""
        with self._logged():
            self.forget(*(f"{_RUN}{step:09d}" for step in self._runs()))

    def bring_run(self, step: int) -> int:
        """Replace the partial folder by the furthest run there that is further than `step`; the step where it is then.

        That is `step` where there is none.
        """
        for further in sorted(self._runs(), reverse=True):
            if further > step and self.bring_all(f"{_RUN}{further:09d}"):
                log.info("%s: goes on after step %d, from %s", self._place, further, self.remote.uri)
                return further
        return step

    def forget(self, *names: str) -> None:
        """Remove what is there under some names."""
        for name in names:
            self.remote.remove_file(f"{self._place}/{name}{_OBJECT}")

    def clear(self) -> None:
        """Remove all that is there; a failure is logged."""
        with self._logged():
            self.remote.remove_folder(self._place)

    def _runs(self) -> list[int]:
        return [int(name.removeprefix(_RUN)) for name in self.names() if name.startswith(_RUN)]

    def _put(self, name: str, base: Path, files: list[Path]) -> bool:
        with self._logged(), self.remote.writing(f"{self._place}/{name}{_OBJECT}") as stream:
            _write(stream, base, files)
            return True
        return False

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except (UserError, OSError) as error:
            log.warning("%s: %s", self._place, error)

    def _get(self, name: str, folder: Path) -> bool:
        try:
            with self.remote.reading(f"{self._place}/{name}{_OBJECT}") as stream:
                return stream is not None and _read(stream, folder)
        except (tarfile.TarError, EOFError) as error:
            log.warning("%s: %s is damaged and not used: %s", self._place, name, error)
            return False


def _files(path: Path) -> list[Path]:
    """The whole files in a folder, or the file itself."""
    if path.is_file():
        return [path]
    unfinished = TEMPORARY, PARTIAL
    found = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return [file for file in found if not any(part.endswith(unfinished) for part in file.relative_to(path).parts)]


def _write(stream: Any, base: Path, files: list[Path]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE) as tar:
        for path in files:
            with path.open("rb") as file:
                info = tarfile.TarInfo(path.relative_to(base).as_posix())
                info.size = os.fstat(file.fileno()).st_size
                info.pax_headers = {_SHA256: hashlib.file_digest(file, "sha256").hexdigest()}
                file.seek(0)
                tar.addfile(info, file)
        tar.addfile(tarfile.TarInfo(_END))


def _read(stream: Any, folder: Path) -> bool:
    """Write what is in an object to a folder; raises TarError or EOFError where that is not what was put in."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_PIECE) as tar:
        for info in tar:
            if info.name == _END:
                return True
            path, digest = folder / info.name, hashlib.sha256()
            content = tar.extractfile(info)
            if content is None or not path.resolve().is_relative_to(folder.resolve()):
                raise tarfile.ReadError(f"{info.name} is no file of a stage")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while piece := content.read(_PIECE):
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != info.pax_headers.get(_SHA256):
                raise tarfile.ReadError(f"{info.name} does not have the checksum that was written")
    raise tarfile.ReadError("it ends too early")


def _replace(old: Path, new: Path) -> None:
    """Give `new` the name of `old`, which goes if it is there."""
    if old.is_dir():
        gone = new.with_name(f"old{TEMPORARY}")  # in a temporary folder, which is removed
        old.rename(gone)
        new.rename(old)
        shutil.rmtree(gone)
    else:
        new.rename(old)
