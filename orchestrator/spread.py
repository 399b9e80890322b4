"""A training run whose store is at a URI: it goes on where it came furthest, on whichever machine, and the ranks of
several machines see its folder alike.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from filelock import FileLock

from data import UserError
from data.mirror import TEMPORARY, Mirror, mirror_of
from orchestrator.checkpoints import Checkpoints
from orchestrator.group import Group

CHECKPOINTS = "checkpoints"


def checkpoints_in(partial: Path) -> Checkpoints:
    """The checkpoints of the run in a folder. Where the store is at a URI, the run as it is goes there with each."""
    mirror = mirror_of(partial)
    return Checkpoints(partial / CHECKPOINTS, mirror.keep_run if mirror else None)


class Spread:
    """The folder of a run on the machines of its ranks; every rank builds one before it reads there.

    Rank 0 brings what is further than what it has, and the others take what rank 0 has then. Where all of them see one
    folder there is nothing to exchange, and `mirror` is None.
    """

    def __init__(self, partial: Path, group: Group) -> None:
        self.mirror: Mirror | None = None
        self.away = False  # whether this rank sees another folder than rank 0
        mirror = mirror_of(partial)
        if mirror is None:
            return
        if group.rank == 0:
            partial.mkdir(parents=True, exist_ok=True)
            found = checkpoints_in(partial).latest()
            mirror.bring_run(found.step if found else 0)
        if group.size > 1:
            self._alike(mirror, group)

    def _alike(self, mirror: Mirror, group: Group) -> None:
        token = int(group.total(float(secrets.randbits(48)) if group.rank == 0 else 0.0))
        name = f"start-{token:012x}"
        mark = mirror.folder / f"{name}{TEMPORARY}"
        if group.rank == 0:
            mark.touch()
        group.wait()
        self.away = not mark.exists()
        if not group.total(float(self.away)):
            return
        self.mirror = mirror
        if group.rank == 0 and not mirror.keep_all(name):
            raise _unreachable(mirror)
        group.wait()
        if self.away:
            with _lock(mirror.folder):
                if not mark.exists():  # another rank of this machine was quicker
                    if not mirror.bring_all(name):
                        raise _unreachable(mirror)
                    mark.touch()
        group.wait()
        if group.rank == 0:
            mirror.forget(name)

    def everywhere(self, there: bool, group: Group) -> bool:
        """Whether something is there on every machine; `there` says whether it is on this one."""
        return group.total(float(there)) == group.size if self.mirror else there

    def give(self, path: Path) -> None:
        """Let ranks on other machines have a file or a folder. Raises UserError where that cannot be."""
        if self.mirror and not self.mirror.keep(path):
            raise _unreachable(self.mirror)

    def take(self, path: Path) -> None:
        """Have a file or a folder that a rank on another machine has given. Raises UserError where that cannot be."""
        if self.mirror and not path.exists():
            with _lock(self.mirror.folder):
                name = path.relative_to(self.mirror.folder).as_posix()
                if not path.exists() and not self.mirror.bring(name):
                    raise _unreachable(self.mirror)


def _lock(folder: Path) -> FileLock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f"{folder.name}.ranks.lock"))


def _unreachable(mirror: Mirror) -> UserError:
    return UserError(
        f"{mirror.remote.uri} does not have what the workers of a run on several machines have to exchange",
        where="store",
        mend="Run again, when every machine of the cluster can write there.",
    )
