"""Checkpoints, pinned: what is restored goes on bit for bit; the newest counts and older ones go; a folder that a kill
left half-written is ignored; nothing in them is a pickle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from orchestrator import checkpoints as module
from orchestrator.checkpoints import Checkpoints


class Weighted(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


def parts(seed: int = 0) -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    modules: dict[str, nn.Module] = {"encoder": nn.Linear(4, 3), "loss": Weighted()}
    first, second = (list(m.parameters()) for m in modules.values())
    groups = [{"params": first, "weight_decay": 0.1}, {"params": second, "weight_decay": 0.0}]
    return modules, torch.optim.AdamW(groups, lr=0.1, fused=True)


def go(modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (modules["encoder"](x) * modules["loss"].weight).square().sum().backward()  # type: ignore[operator]
        optimizer.step()


def bits(modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"]
    moments = [state[i][name] for i in sorted(state) for name in sorted(state[i])]
    return [value for module in modules.values() for value in module.state_dict().values()] + moments


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    modules, optimizer = parts()
    go(modules, optimizer, range(3))
    Checkpoints(tmp_path).save(3, modules, optimizer, {"seconds": 0.1, "training": {"tokens": 7}})
    go(modules, optimizer, range(3, 6))

    others, other_optimizer = parts(seed=1)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert (found.step, found.counters) == (3, {"seconds": 0.1, "training": {"tokens": 7}})
    found.restore(others, other_optimizer)
    assert [group["weight_decay"] for group in other_optimizer.param_groups] == [0.1, 0.0]
    go(others, other_optimizer, range(3, 6))
    expected, restored = bits(modules, optimizer), bits(others, other_optimizer)
    assert len(expected) == 3 + 3 * 3  # weight, bias and the loss's weight; for each, step and two moments
    assert all(torch.equal(a, b) for a, b in zip(expected, restored, strict=True))


def test_a_loss_without_parameters(tmp_path: Path) -> None:
    modules: dict[str, nn.Module] = {"encoder": nn.Linear(4, 3), "loss": nn.Module()}
    optimizer = torch.optim.AdamW(modules["encoder"].parameters())
    Checkpoints(tmp_path).save(1, modules, optimizer, {})  # before a step: the optimizer has no state either
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    before = modules["encoder"].weight.clone()
    nn.init.zeros_(modules["encoder"].weight)  # type: ignore[arg-type]
    found.restore(modules, optimizer)
    assert torch.equal(modules["encoder"].weight, before)  # type: ignore[arg-type]


def test_the_newest_counts_and_older_ones_go(tmp_path: Path) -> None:
    checkpoints, (modules, optimizer) = Checkpoints(tmp_path), parts()
    assert checkpoints.latest() is None
    for step in (9, 10, 100):
        checkpoints.save(step, modules, optimizer, {})
        found = checkpoints.latest()
        assert found is not None
        assert found.step == step
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:09d}"]
    checkpoints.clear()
    assert checkpoints.latest() is None
    checkpoints.clear()


def test_of_two_complete_ones_the_newer_counts(tmp_path: Path) -> None:
    # A kill between the rename and the removal leaves both.
    modules, optimizer = parts()
    for step in (8, 9):
        Checkpoints(tmp_path / str(step)).save(step, modules, optimizer, {})
        (tmp_path / str(step) / f"step-{step:09d}").rename(tmp_path / f"step-{step:09d}")
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert found.step == 9


@pytest.mark.parametrize("killed_at", ["encoder", "loss", "optimizer", "state", "cut-off state", "rename"])
def test_a_half_written_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str) -> None:
    checkpoints, (modules, optimizer) = Checkpoints(tmp_path), parts()
    go(modules, optimizer, range(1))
    checkpoints.save(1, modules, optimizer, {})

    class KilledError(BaseException):
        pass

    def killing(save: Any) -> Any:
        def saved(what: Any, name: str) -> None:
            if killed_at == Path(name).stem:
                Path(name).write_bytes(b"\x00" * 10)
                raise KilledError
            save(what, name)

        return saved

    def dump(value: Any, file: Any) -> None:
        if killed_at == "state":
            raise KilledError
        if killed_at == "cut-off state":
            file.write('{"step": 2, "count')
            raise KilledError
        real_dump(value, file)

    def rename(path: Path, target: Path) -> None:
        if killed_at == "rename":
            raise KilledError
        real_rename(path, target)

    real_dump, real_rename = json.dump, Path.rename
    with monkeypatch.context() as patch:
        for save in ("save_file", "save_model"):
            patch.setattr(module, save, killing(getattr(module, save)))
        patch.setattr(module.json, "dump", dump)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KilledError):
            checkpoints.save(2, modules, optimizer, {})
    assert len(list(tmp_path.iterdir())) == 2
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 1
    found.restore(modules, optimizer)

    checkpoints.save(2, modules, optimizer, {})
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    modules, optimizer = parts()
    go(modules, optimizer, range(1))
    Checkpoints(tmp_path).save(1, modules, optimizer, {"tokens": 7})
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [file.name for file in files] == [
        "encoder.safetensors",
        "loss.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    for file in files[:3]:
        with safe_open(file, "pt") as tensors:
            assert list(tensors.keys())
    assert json.loads(files[3].read_text()) == {"step": 1, "counters": {"tokens": 7}}
