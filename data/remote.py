"""Finished stages at a URI: an object store, or any other file system that pyarrow or fsspec opens.

`uri/tokens/5f3a…/manifest.json` names the attempt whose files are the stage's, `uri/tokens/5f3a…/<attempt>/`. It is
written last, in one piece, so a stage is there with all its files or not at all, and of two machines that make the same
stage neither spoils what the other has written.
"""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # of a folder in which a stage is being made
OBJECT_STORES = ("s3", "gcs", "abfs")  # as pyarrow names them


class Kept(NamedTuple):
    """A finished stage at a URI: its bytes, when it was written in seconds since the epoch, and its manifest."""

    stage: str
    fingerprint: str
    bytes: int
    written: float
    manifest: dict[str, Any]


class Remote:
    """What is kept at a URI. Raises UserError, naming it, where it cannot be reached.

    Args:
        uri: such as `s3://bucket/folder`, with what pyarrow takes behind a question mark (region, endpoint_override).
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __reduce__(self) -> tuple[type[Remote], tuple[str]]:
        return Remote, (self.uri,)  # connections do not travel

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def check(self) -> None:
        """Refuse a place that cannot be written."""
        with self._reached():
            path = f"{self._base}/.writable-{uuid.uuid4().hex}"
            self._write(path, b"")
            self._files.delete_file(path)

    def has(self, stage: str, fingerprint: str) -> bool:
        """Whether a finished stage is there."""
        return self._pointer(stage, fingerprint) is not None

    def fetch(self, stage: str, fingerprint: str, folder: Path) -> bool:
        """Copy a finished stage into a new folder; False where it is not there."""
        pointer = self._pointer(stage, fingerprint)
        if pointer is None:
            return False
        with self._reached():
            self._copy_here(f"{self._base}/{stage}/{fingerprint}/{pointer['attempt']}", folder)
        return True

    def push(self, stage: str, fingerprint: str, folder: Path) -> None:
        """Copy a finished stage there, unless it is there already."""
        if self.has(stage, fingerprint):
            return
        attempt, place = uuid.uuid4().hex, f"{self._base}/{stage}/{fingerprint}"
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        with self._reached():
            self._copy_there(folder, f"{place}/{attempt}")
            self._write(f"{place}/{MANIFEST}", json.dumps({"attempt": attempt, **told}).encode())

    def put(self, folder: Path, name: str) -> None:
        """Copy a folder there, over what is there under its name."""
        with self._reached():
            self._copy_there(folder, f"{self._base}/{name}")

    def kept(self) -> list[Kept]:
        """All finished stages."""
        from pyarrow.fs import FileSelector, FileType

        found = []
        with self._reached():
            infos = self._files.get_file_info(FileSelector(self._base, recursive=True, allow_not_found=True))
            sizes = {info.path: info.size for info in infos if info.type == FileType.File}
            for info in infos:
                parts = info.path.removeprefix(f"{self._base}/").split("/")
                if len(parts) == 3 and parts[2] == MANIFEST:
                    told = json.loads(self._read(info.path))
                    inside = f"{self._base}/{parts[0]}/{parts[1]}/{told['attempt']}/"
                    size = sum(size for path, size in sizes.items() if path.startswith(inside))
                    found.append(Kept(parts[0], parts[1], size, info.mtime.timestamp() if info.mtime else 0.0, told))
        return sorted(found)

    def begun(self) -> list[tuple[str, str, int, float]]:
        """What is under way, or was left: stage, fingerprint, bytes, and when it was last written, as in `Kept`."""
        from pyarrow.fs import FileSelector, FileType

        found: dict[tuple[str, str], tuple[int, float]] = {}
        with self._reached():
            infos = self._files.get_file_info(FileSelector(self._base, recursive=True, allow_not_found=True))
        for info in infos:
            parts = info.path.removeprefix(f"{self._base}/").split("/")
            if info.type == FileType.File and len(parts) > 2 and parts[1].endswith(PARTIAL):
                size, written = found.get((parts[0], parts[1]), (0, 0.0))
                written = max(written, info.mtime.timestamp() if info.mtime else 0.0)
                found[parts[0], parts[1]] = size + info.size, written
        return sorted((stage, name.removesuffix(PARTIAL), *told) for (stage, name), told in found.items())

    def reports(self) -> Iterator[str]:
        """The content of every report's JSON."""
        from pyarrow.fs import FileSelector

        with self._reached():
            selector = FileSelector(f"{self._base}/reports", recursive=True, allow_not_found=True)
            for info in self._files.get_file_info(selector):
                if info.path.endswith(".json"):
                    yield self._read(info.path).decode()

    def remove(self, stage: str, fingerprint: str) -> None:
        """Remove a stage: first what says that it is there."""
        with self._reached():
            place = f"{self._base}/{stage}/{fingerprint}"
            self._files.delete_file(f"{place}/{MANIFEST}")
            self._files.delete_dir(place)

    def place(self, folder: str) -> tuple[Any, str]:
        """The pyarrow file system, and the path of a folder in it."""
        return self._files, f"{self._base}/{folder}"

    def names(self, folder: str) -> list[str]:
        """The names of the files that are somewhere in a folder, below it; none where there is no such folder."""
        from pyarrow.fs import FileSelector, FileType

        place = f"{self._base}/{folder}"
        with self._reached():
            infos = self._files.get_file_info(FileSelector(place, recursive=True, allow_not_found=True))
        return [info.path.removeprefix(f"{place}/") for info in infos if info.type == FileType.File]

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """A stream into a file, which is there, over one that was, once it has been written to its end."""
        path = f"{self._base}/{name}"
        # What is put into an object store is there as a whole; elsewhere a rename does that.
        whole = self._files.type_name in OBJECT_STORES
        place = path if whole else f"{path}.{uuid.uuid4().hex}.tmp"
        with self._reached():
            if not whole:
                self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(place) as stream:
                yield stream
            if not whole:
                self._files.move(place, path)

    @contextmanager
    def reading(self, name: str) -> Iterator[Any]:
        """A stream of a file; None where it is not there."""
        with self._reached():
            try:
                stream = self._files.open_input_stream(f"{self._base}/{name}")
            except FileNotFoundError:
                yield None
                return
            with stream:
                yield stream

    def remove_file(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._reached(), suppress(FileNotFoundError):
            self._files.delete_file(f"{self._base}/{name}")

    def remove_folder(self, name: str) -> None:
        """Remove a folder, if it is there."""
        from pyarrow.fs import FileType

        with self._reached(), suppress(FileNotFoundError):
            if self._files.get_file_info(f"{self._base}/{name}").type != FileType.NotFound:
                self._files.delete_dir(f"{self._base}/{name}")

    def _pointer(self, stage: str, fingerprint: str) -> dict[str, Any] | None:
        from pyarrow.fs import FileType

        path = f"{self._base}/{stage}/{fingerprint}/{MANIFEST}"
        with self._reached():
            if self._files.get_file_info(path).type != FileType.File:
                return None
            found: dict[str, Any] = json.loads(self._read(path))
            return found

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @property
    def _base(self) -> str:
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        import pyarrow as pa
        from pyarrow import fs

        try:
            try:
                files, path = fs.FileSystem.from_uri(self.uri)
            except pa.ArrowInvalid:  # none that pyarrow knows
                import fsspec  # type: ignore[import-untyped]

                other, path = fsspec.core.url_to_fs(self.uri)
                files = fs.PyFileSystem(fs.FSSpecHandler(other))
        except (OSError, ValueError, ImportError) as error:
            raise self._unreachable(error) from error
        return files, path.rstrip("/")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of this machine's disk
                raise
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> UserError:
        return UserError(
            f"{self.uri} cannot be used: {str(error).splitlines()[0]}",
            where="store",
            mend="See to the address, the credentials and the network, or name a folder.",
        )

    def _read(self, path: str) -> bytes:
        with self._files.open_input_stream(path) as file:
            content: bytes = file.read()
            return content

    def _write(self, path: str, content: bytes) -> None:
        self._files.create_dir(path.rpartition("/")[0], recursive=True)
        with self.writing(path.removeprefix(f"{self._base}/")) as file:
            file.write(content)

    def _copy_there(self, folder: Path, place: str) -> None:
        from pyarrow import fs

        self._files.create_dir(place, recursive=True)
        fs.copy_files(str(folder), place, fs.LocalFileSystem(), self._files)

    def _copy_here(self, place: str, folder: Path) -> None:
        from pyarrow import fs

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fs.copy_files(place, str(folder), self._files, fs.LocalFileSystem())
