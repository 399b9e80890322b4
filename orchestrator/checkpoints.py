"""Checkpoints of a training run: safetensors and JSON in a folder, complete or absent, never half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood after `step` optimizer steps; `counters` are JSON values that go on from there."""

    step: int
    counters: dict[str, Any]
    folder: Path

    def restore(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Load weights and optimizer state, bit for bit."""
        for name, module in modules.items():
            load_model(module, str(self.folder / f"{name}.safetensors"))
        flat = load_file(str(self.folder / "optimizer.safetensors"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            index, field = key.split(".", 1)
            state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Checkpoints:
    """The newest checkpoint of a run in `folder`; older ones are removed once a newer one is complete.

    Args:
        on_saved: called with its step when a checkpoint has become the newest.
    """

    def __init__(self, folder: Path, on_saved: Callable[[int], None] | None = None) -> None:
        self.folder, self._on_saved = folder, on_saved

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None."""
        complete = sorted(self.folder.glob("step-?????????/state.json"))  # what is being written has another suffix
        if not complete:
            return None
        state = json.loads(complete[-1].read_text())
        return Checkpoint(step=state["step"], counters=state["counters"], folder=complete[-1].parent)

    def save(
        self, step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, counters: dict[str, Any]
    ) -> None:
        """Write everything that a run needs to go on after `step` as if it had not been interrupted."""
        final = self.folder / f"step-{step:09d}"
        partial = self.folder / f"{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, module in modules.items():
            save_model(module, str(partial / f"{name}.safetensors"))  # a weight that has two names, once
        flat = {
            f"{index}.{field}": value.contiguous()
            for index, fields in optimizer.state_dict()["state"].items()
            for field, value in fields.items()
        }
        save_file(flat, str(partial / "optimizer.safetensors"))
        with (partial / "state.json").open("w") as file:
            json.dump({"step": step, "counters": counters}, file)
        for path in partial.iterdir():  # on the disk before the rename: a machine may be lost, not only a process
            with path.open("rb") as written:
                os.fsync(written.fileno())
        partial.rename(final)
        for old in self.folder.glob("step-*"):
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        if self._on_saved:
            self._on_saved(step)

    def clear(self) -> None:
        """Remove what the finished run no longer needs."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def system_errors() -> Iterator[None]:
    """safetensors tells in words what the system said of a file: that is an OSError again."""
    try:
        yield
    except SafetensorError as error:
        if said := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from error
        raise
