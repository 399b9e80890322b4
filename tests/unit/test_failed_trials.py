"""Runs that fail, pinned: one that diverges and one that runs out of memory leave why in their stage, with what they
cost, and are not trained again; their checkpoints are gone; what is neither stays an error.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_trial
import torch
from tiny import save
from tiny_trial import experiment, run_of

from losses import LossOutput, Margin
from orchestrator import trial as module
from orchestrator import validation
from orchestrator.group import Group
from orchestrator.records import Progress
from orchestrator.training import Validated, train
from orchestrator.trial import FAILURE, TrialFailedError, is_out_of_memory, run_trial, trial_of
from orchestrator.tuning import refusal
from orchestrator.workspace import Workspace


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save(tmp_path_factory.mktemp("failed") / "model", tokenizer=tokenizer_folder, layers=3)


@pytest.fixture
def workspace(beir: Callable[..., Path], model: Path, tmp_path: Path) -> Workspace:
    """Six steps, validated after the second, the fourth and the sixth, and a checkpoint after each."""
    return Workspace(experiment(beir(**tiny_trial.beir_files()), model, tmp_path / "store"))


def breaks(monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[LossOutput], LossOutput]) -> None:
    """The loss does so from its call number `at` on."""
    compute, calls = Margin.compute, 0

    def broken(self: Margin, *arguments: Any) -> LossOutput:
        nonlocal calls
        calls += 1
        output = compute(self, *arguments)
        return how(output) if calls >= at else output

    monkeypatch.setattr(Margin, "compute", broken)


def diverged(output: LossOutput) -> LossOutput:
    return output._replace(loss=output.loss * math.nan)


def full(output: LossOutput) -> LossOutput:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def failing(workspace: Workspace) -> tuple[TrialFailedError, list[int]]:
    """The failure of the run, and the steps that were validated before it."""
    seen: list[Progress] = []
    with pytest.raises(TrialFailedError) as failed:
        run_trial(workspace, run_of(workspace.experiment), seen.append)
    return failed.value, [point.step for point in seen]


def check_it_is_kept(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, text: str, reason: str) -> None:
    stage = workspace.trial(run_of(workspace.experiment))
    assert not stage.done
    assert (stage.partial / FAILURE).is_file()
    assert not (stage.partial / "checkpoints").exists(), "weights that may have diverged"
    trial = trial_of(workspace, run_of(workspace.experiment))
    assert (trial.state, trial.reason, trial.model) == ("failed", reason, None)
    assert [point.step for point in trial.curve if point.validation is not None] == [2, 4]
    monkeypatch.setattr(module, "train", lambda *args, **more: pytest.fail("trained again"))
    again, steps = failing(workspace)
    assert (str(again), steps) == (text, [2, 4]), "the same as before, and what was validated is passed on"
    assert trial_of(workspace, run_of(workspace.experiment)) == trial


def test_a_run_that_diverges(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, 5, diverged)
    error, steps = failing(workspace)
    assert steps == [2, 4]
    text = "training.learning_rate: the loss is nan at step 5. Lower it (0.001), or use precision: fp32."
    assert str(error) == text
    trial = trial_of(workspace, run_of(workspace.experiment))
    assert [(cost.stage, cost.recipe, cost.examples) for cost in trial.costs] == [
        ("training", "arm-adaptive", 20),
        ("validation", "arm-adaptive", 0),
    ], "what it cost up to the step that it failed at"
    check_it_is_kept(workspace, monkeypatch, text, "the loss is nan at step 5")


def test_a_run_without_memory(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, 6, full)
    error, steps = failing(workspace)
    assert steps == [2, 4]
    text = (
        "training.activation_tokens: out of memory. Lower it (32768), or training.batch_size, or take a device with "
        "more memory."
    )
    assert str(error) == text
    trial = trial_of(workspace, run_of(workspace.experiment))
    assert trial.costs[0].examples == 16, "as the journal has it"
    check_it_is_kept(workspace, monkeypatch, text, "out of memory")


def test_a_validation_that_is_not_finite(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_finite(self: validation.Validator, encoder: Any, group: Group) -> Validated:
        return Validated(math.nan, validate(self, encoder, group).encoded)

    validate = validation.Validator.__call__
    monkeypatch.setattr(validation.Validator, "__call__", not_finite)
    error, steps = failing(workspace)
    assert steps == []
    assert error.what == "the validation is nan at step 2"


def test_what_is_no_failure_stays_an_error(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(module, "train", broken)
    with pytest.raises(RuntimeError, match=r"^mat1"):
        run_trial(workspace, run_of(workspace.experiment), lambda point: None)
    assert trial_of(workspace, run_of(workspace.experiment)).state == "stopped"
    monkeypatch.setattr(module, "train", train)
    run_trial(workspace, run_of(workspace.experiment), lambda point: None)
    assert trial_of(workspace, run_of(workspace.experiment)).state == "finished"


def test_what_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)  # an exabyte
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes"))


def test_what_tune_is_told() -> None:
    failed = pickle.loads(pickle.dumps(TrialFailedError("the loss is nan", where="a", mend="b")))  # noqa: S301
    assert isinstance(failed, TrialFailedError)
    assert refusal(failed, 2) == {"validation": 0.0, "validations": 2, "done": True, "failed": True}
