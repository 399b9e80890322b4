"""What goes from a process to one that may be on another machine: paths into the store name what they lead to.

Where the store is a folder, all machines see it under the same path, and values go as they are. Where it is at a URI, a
path of one machine means nothing on another: the stage that it leads to is named instead, and is brought to the folder
that the other machine works in; finished output, or a file of what is under way.
"""

from __future__ import annotations

import io
import logging
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from data.errors import UserError
from data.mirror import Mirror, mirror_of, roots, works_for
from data.remote import MANIFEST, PARTIAL, Remote
from data.store import Store, fetch, kept_mark, push

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packed:
    """A value on its way, the machine that it comes from, and where that works for each URI."""

    content: bytes
    machine: str
    roots: tuple[tuple[str, Path], ...]

    @property
    def home(self) -> bool:
        """Whether this is the machine that it comes from."""
        return self.machine == _machine()


def pack(value: Any) -> Any:
    """The value, or what `unpack` makes the same of on another machine, where paths in it lead into a store at a URI.

    What the paths lead to is taken to the URI, if it is not there.
    """
    if not roots():
        return value
    buffer = io.BytesIO()
    _Packer(buffer).dump(value)
    return Packed(buffer.getvalue(), _machine(), tuple((remote.uri, root) for root, remote in roots().items()))


def unpack(value: Any) -> Any:
    """What `pack` was given; the output of stages that its paths lead to is brought to this machine.

    Raises UserError where that cannot be had.
    """
    return _Unpacker(value).load() if isinstance(value, Packed) else value


def _machine() -> str:
    """The node of the Ray cluster that this process is on; nothing where it is not connected to one."""
    if "ray" not in sys.modules:
        return ""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._taken: set[Path] = set()

    def persistent_id(self, value: Any) -> Any:
        """(number of the root, names below it) of a path into a store at a URI."""
        if not isinstance(value, Path):
            return None
        for number, (root, remote) in enumerate(roots().items()):
            if value.is_relative_to(root):
                names = value.relative_to(root).parts
                kept = value if mirror_of(value) else root.joinpath(*names[:2])
                if kept not in self._taken:
                    self._taken.add(kept)
                    _take(remote, root, kept)
                return number, names
        return None


class _Unpacker(pickle.Unpickler):
    def __init__(self, packed: Packed) -> None:
        super().__init__(io.BytesIO(packed.content))
        self._roots = [(Remote(uri), root if packed.home else Store(uri).root) for uri, root in packed.roots]
        for remote, root in self._roots:
            works_for(root, remote)

    def persistent_load(self, place: tuple[int, tuple[str, ...]]) -> Path:
        remote, root = self._roots[place[0]]
        path = root.joinpath(*place[1])
        _bring(remote, root, path)
        return path


def _take(remote: Remote, root: Path, path: Path) -> None:
    """Take what a path leads to there: a file of what is under way, or finished output."""
    if mirror := mirror_of(path):
        if path.is_file():
            mirror.keep(path)
    elif (stage := _stage(root, path)) and (stage / MANIFEST).is_file():
        try:
            if not remote.has(stage.parent.name, stage.name):
                kept_mark(stage).unlink(missing_ok=True)
        except UserError as error:  # whoever needs it and has it not will say so
            log.warning("%s/%s: %s", stage.parent.name, stage.name, error)
        else:
            push(remote, stage)


def _bring(remote: Remote, root: Path, path: Path) -> None:
    stage = _stage(root, path)
    if stage is None:
        return
    if stage.name.endswith(PARTIAL):
        stage.mkdir(parents=True, exist_ok=True)
        if path != stage and not path.exists():
            Mirror(remote, stage).bring(path.relative_to(stage).as_posix())
        return
    if (stage / MANIFEST).is_file():
        return
    stage.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(stage.with_name(f"{stage.name}.fetch.lock")):  # once for all processes of this machine
        if not (stage / MANIFEST).is_file() and not fetch(remote, stage):
            raise UserError(
                f"{remote.uri} does not have {stage.parent.name}/{stage.name}, which another machine has made",
                where="store",
                mend="Run again, when every machine of the cluster can write there.",
            )


def _stage(root: Path, path: Path) -> Path | None:
    """The folder of the stage that a path lies in."""
    names = path.relative_to(root).parts[:2]
    return root.joinpath(*names) if len(names) == 2 else None
