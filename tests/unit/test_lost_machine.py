"""A machine that is lost, pinned: what it trained another goes on with from the last checkpoint, and ends with the same
bits; who comes back goes on where the others are; what was stopped elsewhere is read; ranks on machines of their own
train what ranks on one machine do.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny_flow
import tiny_trial
from safetensors.torch import load_file
from tiny import save, state_equal

from data import BatchPlan
from data.arrow import read_arrow
from data.travel import Packed, pack
from orchestrator import cluster, shards, watch
from orchestrator.config import load
from orchestrator.cross_encoder_training import CrossEncoderLearner
from orchestrator.group import Group
from orchestrator.journal import Entry
from orchestrator.records import Progress
from orchestrator.runs import RunSpec, runs_of
from orchestrator.searches import trials_of
from orchestrator.trial import TrialFailedError, read_trial, run_trial
from orchestrator.workspace import Workspace

Machine = Callable[..., Workspace]


class KilledError(BaseException):
    pass


class Report:
    """Keeps the steps that are reported, and may be a kill."""

    def __init__(self, deadly: int | None = None) -> None:
        self.steps: list[int] = []
        self.deadly = deadly

    def __call__(self, point: Progress) -> None:
        self.steps.append(point.step)
        if len(self.steps) == self.deadly:
            raise KilledError


@pytest.fixture
def machine(
    beir: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    """A workspace on a machine of that name; all have a store at one URI. Six steps, each with a checkpoint."""
    collection = beir(**tiny_trial.beir_files())
    model = save(tmp_path / "model", tokenizer=tokenizer_folder, layers=3)

    def on(name: str, uri: str = f"file://{tmp_path}/kept") -> Workspace:
        monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / name))
        experiment = tiny_trial.experiment(collection, model, Path("-"))
        return Workspace(experiment.model_copy(update={"store": uri}))

    return on


def ended(workspace: Workspace, report: Report | None = None) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Run to the end; the curve but for its seconds, with what was counted, and the weights."""
    run = tiny_trial.run_of(workspace.experiment)
    run_trial(workspace, run, report or Report())
    trial = read_trial(workspace.trial(run), run)
    assert trial.model is not None
    curve = [(p.step, p.examples, p.loss, p.validation) for p in trial.curve]
    return [*curve, *((c.stage, c.examples, c.tokens) for c in trial.costs)], load_file(
        f"{trial.model}/model.safetensors"
    )


def killed(workspace: Workspace, at: int) -> None:
    with pytest.raises(KilledError):
        ended(workspace, Report(at))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are trained from now on."""
    found: list[int] = []
    batch = BatchPlan.batch
    monkeypatch.setattr(BatchPlan, "batch", lambda plan, step: found.append(step) or batch(plan, step))
    return found


def test_another_machine_goes_on_from_the_last_checkpoint(machine: Machine, tmp_path: Path, steps: list[int]) -> None:
    whole = ended(machine("whole", str(tmp_path / "folder")))
    killed(machine("one"), 2)  # in the report of step 4; the newest checkpoint is that of step 3
    shutil.rmtree(tmp_path / "one")
    steps.clear()
    report = Report()
    again = ended(machine("two"), report)
    assert (again[0], report.steps, steps) == (whole[0], [2, 4, 6], [3, 4, 5])
    assert state_equal(again[1], whole[1])
    assert not list((tmp_path / "kept").glob("trials/*.partial"))
    assert not list((tmp_path / "two").rglob("*.partial"))


def test_who_comes_back_goes_on_where_the_others_are(machine: Machine, tmp_path: Path, steps: list[int]) -> None:
    whole = ended(machine("whole", str(tmp_path / "folder")))
    killed(machine("one"), 1)
    killed(machine("two"), 2)
    steps.clear()
    again = ended(machine("one"))
    assert (again[0], steps) == (whole[0], [3, 4, 5])
    assert state_equal(again[1], whole[1])


def test_what_is_further_here_is_gone_on_with(machine: Machine, tmp_path: Path, steps: list[int]) -> None:
    killed(machine("one"), 1)  # a checkpoint of step 1
    kept = shutil.copytree(tmp_path / "kept", tmp_path / "before")
    killed(machine("one"), 2)
    shutil.rmtree(tmp_path / "kept")
    kept.rename(tmp_path / "kept")
    steps.clear()
    ended(machine("one"))
    assert steps == [3, 4, 5]


def test_a_run_that_was_stopped_elsewhere_is_read(machine: Machine) -> None:
    one = machine("one")
    run = tiny_trial.run_of(one.experiment)
    with pytest.raises(KilledError):
        run_trial(one, run, Report(2))
    (here,), (there,) = trials_of(one, [run]), trials_of(machine("driver"), [run])
    assert there.state == "stopped"
    assert [point.step for point in there.curve] == [1, 2, 3, 4]
    assert there == here


def test_a_run_that_failed_elsewhere_is_read_and_not_tried_again(machine: Machine, tmp_path: Path) -> None:
    one, driver = machine("one"), machine("driver")
    run = tiny_trial.run_of(one.experiment)

    def no_memory(point: Progress) -> None:
        if point.step == 4:
            raise MemoryError

    with pytest.raises(TrialFailedError, match="out of memory"):
        run_trial(one, run, no_memory)
    ((here,), (there,)) = trials_of(one, [run]), trials_of(driver, [run])
    assert (there.state, there.reason) == ("failed", "out of memory")
    assert there == here
    again = Report()
    with pytest.raises(TrialFailedError, match="out of memory"):
        run_trial(machine("two"), run, again)
    assert again.steps == [2, 4], "what it had reported is told, and nothing is trained"
    kept = {path.name for path in (tmp_path / "kept").glob("trials/*.partial/*")}
    assert kept == {"journal.jsonl.tar", "failure.json.tar"}, "no weights stay there"


def test_runs_on_other_machines_are_watched(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SECONDS", 0.01)
    monkeypatch.setattr(watch, "FAR_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "several", lambda: True)
    driver, one = machine("driver"), machine("one")
    runs = [tiny_trial.run_of(driver.experiment, row) for row in (0, 1)]
    seen: list[tuple[str, int]] = []

    def on_entries(run: RunSpec, entries: list[Entry]) -> None:
        seen.extend((run.name, entry.point.step) for entry in entries)

    with watch.Watch([(run, driver.trial(run)) for run in runs], on_entries):
        with pytest.raises(KilledError):
            run_trial(one, runs[0], Report(2))
        while (runs[0].name, 4) not in seen:
            pass
        run_trial(machine("two"), runs[1], Report())
        run_trial(machine("two"), runs[0], Report())
    for run in runs:
        assert [step for name, step in seen if name == run.name] == [1, 2, 3, 4, 5, 6]
        assert driver.trial(run).here


def test_a_cross_encoder_is_trained_on(
    tmp_path: Path, tiny_collection: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, one_cpu: None
) -> None:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)
    training = (
        "{batch_size: 8, epochs: 3, learning_rate: 2.0e-3, precision: fp32, validations: 3, checkpoint_seconds: 0}"
    )
    model = f"{{model: {tiny_model}, query_tokens: 12, document_tokens: 14, training: {training}}}"

    def made(name: str, store: str = f"file://{tmp_path}/kept") -> tuple[dict[str, Any], dict[str, Any]]:
        monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / name))
        settings = [f"teacher={{cross_encoder: {model}}}", "recipes=[score-kl]", f"store={store}"]
        teaching = Workspace(load(path, settings)).teaching
        assert teaching is not None
        teaching.make()
        (stage,) = teaching.scorer.stages
        (table,) = (read_arrow(file) for file in shards.files(stage.path))
        return table.to_pydict(), load_file(stage.path / "model" / "model.safetensors")

    whole = made("whole", str(tmp_path / "folder"))
    trained: list[int] = []
    learn = CrossEncoderLearner.learn

    def learn_to(last: int) -> Any:
        def step(self: CrossEncoderLearner, number: int, group: Group) -> Any:
            if number == last:
                raise KilledError
            trained.append(number)
            return learn(self, number, group)

        return step

    validated = whole[0]["step"]
    monkeypatch.setattr(CrossEncoderLearner, "learn", learn_to(validated[1] + 1))
    with pytest.raises(KilledError):
        made("one")
    shutil.rmtree(tmp_path / "one")
    monkeypatch.setattr(CrossEncoderLearner, "learn", learn_to(-1))
    again = made("two")
    assert trained == list(range(validated[-1]))  # none twice: each point that is reported has a checkpoint
    assert again[0] == whole[0]
    assert state_equal(again[1], whole[1])
    assert not list((tmp_path / "kept").glob("*/*.partial"))


@pytest.mark.slow
def test_ranks_on_machines_of_their_own(
    tmp_path: Path, tiny_collection: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With negatives that are mined anew in the second epoch; killed then, and the ranks change their machines."""
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)
    settings = ["negatives={source: mined, depth: 9, refresh: 1}", "recipes=[arm-adaptive]", "scaling.workers=2"]
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "driver"))
    monkeypatch.setattr(cluster, "resources", lambda: cluster.Resources(2, 0.0, 2, 0.0))

    def driven(store: str) -> tuple[Workspace, RunSpec]:
        workspace = Workspace(load(path, [*settings, "training.checkpoint_seconds=0", f"store={store}"]))
        workspace.negatives  # noqa: B018 - the driver's part
        return workspace, runs_of(workspace.experiment, workspace.experiment.recipes[0])[0]

    def train(workspace: Workspace, run: RunSpec, name: str, machines: list[str], deadly: int = 0) -> list[int]:
        packed = pack(workspace.opened)
        away = replace(packed, machine="the driver's") if isinstance(packed, Packed) else packed
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.pickle").write_bytes(pickle.dumps((away, run, deadly, [str(tmp_path / m) for m in machines])))
        ranks.together("on_machines", folder)
        steps: list[list[int]] = [json.loads((folder / f"steps-{rank}.json").read_text()) for rank in (0, 1)]
        assert steps[0] == steps[1]
        return steps[0]

    whole, run = driven(str(tmp_path / "folder"))
    every_step = train(whole, run, "whole", ["driver", "driver"])
    expected = read_trial(whole.trial(run), run)
    spread, run = driven(f"file://{tmp_path}/kept")
    before = train(spread, run, "killed", ["one", "two"], deadly=every_step[-1] - 2)
    after = train(spread, run, "again", ["two", "one"])
    assert before + after == every_step
    stage = spread.trial(run)
    assert not stage.here
    assert stage.done
    trial = read_trial(stage, run)
    assert [(p.step, p.loss, p.validation) for p in trial.curve] == [
        (p.step, p.loss, p.validation) for p in expected.curve
    ]
    assert trial.model
    assert expected.model
    assert state_equal(*(load_file(f"{model}/model.safetensors") for model in (trial.model, expected.model)))
    for machine in ("one", "two"):
        assert {path.parent.name for path in (tmp_path / machine).glob("*/tokens/*/manifest.json")} == {
            shards.folder.name for shards in spread.tokens
        }
        assert not list((tmp_path / machine).glob("*/*/*.partial"))
