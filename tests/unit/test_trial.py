"""A durable run, pinned: what it leaves in the store; killed anywhere (by an exception, by SIGKILL) and run again it
ends with the same bits and the same curve; what was reported is passed on and not trained again; the last point waits
for the trained encoder; a finished run trains nothing; the journal drops what a kill cut off; a run that another row
made is known by the name of the row that asks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_trial
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import save, state_equal
from tiny_trial import experiment, run_of

from orchestrator import trial as module
from orchestrator.checkpoints import Checkpoints
from orchestrator.encoder import load_encoder
from orchestrator.journal import Entry, Journal
from orchestrator.records import Cost, Progress, Trial
from orchestrator.runs import runs_of
from orchestrator.searches import trials_of
from orchestrator.training import train
from orchestrator.trial import RECORD, read_trial, record, run_trial
from orchestrator.workspace import MODEL, Workspace

Make = Callable[..., Workspace]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save(tmp_path_factory.mktemp("trial") / "model", tokenizer=tokenizer_folder, layers=3)


@pytest.fixture
def make(beir: Callable[..., Path], model: Path, tmp_path: Path) -> Make:
    """A workspace with a store of that name."""
    collection = beir(**tiny_trial.beir_files())
    return lambda store="store", **training: Workspace(experiment(collection, model, tmp_path / store, **training))


class KilledError(BaseException):
    pass


class Report:
    """Keeps the points, and may be a kill."""

    def __init__(self, deadly: int | None = None) -> None:
        self.points: list[Progress] = []
        self.deadly = deadly

    def __call__(self, point: Progress) -> None:
        self.points.append(point)
        if len(self.points) == self.deadly:
            raise KilledError

    @property
    def values(self) -> list[tuple[int, float | None]]:
        return [(point.step, point.validation) for point in self.points]


def timeless(trial: Trial) -> list[tuple[Any, ...]]:
    """A curve but for its seconds."""
    return [(p.step, p.examples, p.loss, p.validation, p.diagnostics) for p in trial.curve]


def counts(trial: Trial) -> list[tuple[Any, ...]]:
    return [(c.stage, c.recipe, c.trial, c.examples, c.tokens, c.flops) for c in trial.costs]


def finished(workspace: Workspace, report: Report) -> tuple[Trial, dict[str, Any]]:
    """Run to the end; its record and the trained weights."""
    run = run_of(workspace.experiment)
    run_trial(workspace, run, report)
    trial = read_trial(workspace.trial(run), run)
    assert trial.model is not None
    return trial, load_file(Path(trial.model) / "model.safetensors")


def test_batches_by_tokens_and_examples_by_query(make: Make) -> None:
    workspace = make(batch_size="85 tokens", examples="queries")
    plan = workspace.plan(run_of(workspace.experiment).training)
    assert workspace.steps(run_of(workspace.experiment).training) == plan.total_steps
    batches = [plan.batch(step) for step in range(plan.total_steps)]
    mean = workspace.tokens.documents.lengths.mean()
    sizes = set()
    for batch in batches:
        of_queries = workspace.tokens.queries.lengths[batch.queries].sum()
        of_positives = workspace.tokens.documents.lengths[batch.positives].sum()
        assert of_queries + of_positives + len(batch.queries) * mean <= 85
        sizes.add(len(batch.queries))
    assert len(sizes) > 1
    trial, _ = finished(workspace, Report())
    assert [point.examples for point in trial.curve] == [plan.examples_before(point.step) for point in trial.curve]
    assert trial.costs[0].examples == trial.curve[-1].examples == sum(len(batch.queries) for batch in batches)
    # Killed on its way, it ends the same.
    with pytest.raises(KilledError):
        finished(make("other", batch_size="85 tokens", examples="queries"), Report(deadly=2))
    again, _ = finished(make("other", batch_size="85 tokens", examples="queries"), Report())
    assert timeless(again) == timeless(trial)
    # Without tokens nobody knows how many steps there are.
    assert make("empty", batch_size="85 tokens").steps(run_of(workspace.experiment).training) is None


def test_what_a_run_leaves(make: Make) -> None:
    workspace, report = make(), Report()
    trial, weights = finished(workspace, report)
    assert (trial.name, trial.parameters, trial.state) == ("arm-adaptive", {}, "finished")
    assert [point.step for point in trial.curve] == [1, 2, 3, 4, 5, 6]
    assert [point.validation is not None for point in trial.curve] == [False, True, False, True, False, True]
    assert report.points == [point for point in trial.curve if point.validation is not None]
    assert trial.validation == trial.curve[-1].validation
    assert [(cost.stage, cost.recipe, cost.trial) for cost in trial.costs] == [
        (stage, "arm-adaptive", "arm-adaptive") for stage in ("training", "validation")
    ]
    assert trial.costs[0].examples == 24
    folder = workspace.trial(run_of(workspace.experiment)).path
    assert {path.name for path in folder.iterdir()} == {"journal.jsonl", MODEL, RECORD, "manifest.json"}
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert [line["point"] for line in lines] == [asdict(point) for point in trial.curve]
    assert [len(line["costs"]) for line in lines] == [0, 2, 0, 2, 0, 2]

    # The same as the core by itself.
    run, encoder = run_of(workspace.experiment), workspace.load_encoder()
    encoding = workspace.encoding("fp32", run.training.token_budget)
    losses: list[float] = []
    train(
        workspace.plan(run.training),
        workspace.tokens,
        encoder,
        run.build_loss(),
        run.training,
        encoding,
        validate=workspace.validator(encoding),
        report=lambda point, costs: losses.append(point.loss),
        checkpoints=Checkpoints(folder.parent / "elsewhere"),
    )
    assert losses == [point.loss for point in trial.curve]
    again = load_encoder(folder / MODEL, pooling="mean", normalize=True)
    assert state_equal(encoder.state_dict(), again.state_dict())
    assert state_equal(encoder.backbone.state_dict(), weights)


def test_the_last_point_waits_for_the_trained_encoder(make: Make) -> None:
    workspace = make()
    run = run_of(workspace.experiment)
    stage, there = workspace.trial(run), []
    run_trial(workspace, run, lambda point: there.append((point.step, stage.done)))
    assert there == [(2, False), (4, False), (6, True)]


def test_a_finished_run_trains_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Report(), Report()
    trial, weights = finished(make(), first)

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train", never)
    again, same = finished(make(), second)
    assert again == trial
    assert state_equal(weights, same)
    assert second.points == first.points


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0])
@pytest.mark.parametrize("deadly", [1, 2, 3])
def test_killed_in_a_report_and_run_again(make: Make, deadly: int, checkpoint_seconds: float) -> None:
    trial, weights = finished(make("whole"), Report())
    with pytest.raises(KilledError):
        finished(make(checkpoint_seconds=checkpoint_seconds), killed := Report(deadly))
    again, same = finished(make(checkpoint_seconds=checkpoint_seconds), report := Report())
    assert state_equal(same, weights)
    assert timeless(again) == timeless(trial)
    assert counts(again) == counts(trial)
    assert report.points[:deadly] == killed.points, "passed on as they were, not measured again"
    assert report.values == [(p.step, p.validation) for p in trial.curve if p.validation is not None]


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps whose batch was asked for from now on."""
    from data import BatchPlan

    steps: list[int] = []
    batch = BatchPlan.batch
    monkeypatch.setattr(BatchPlan, "batch", lambda plan, step: steps.append(step) or batch(plan, step))
    return steps


def test_what_was_reported_is_not_trained_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KilledError):
        finished(make(), Report(2))  # in the report of step 4; the newest checkpoint is that of step 3
    steps, order = count_steps(monkeypatch), []
    workspace = make()
    run_trial(workspace, run_of(workspace.experiment), lambda point: order.append((point.step, list(steps))))
    assert steps == [3, 4, 5]
    assert order == [(2, []), (4, []), (6, [3, 4, 5])]  # the old ones before any training


@pytest.mark.parametrize("where", ["journal", "checkpoint", "record", "model", "rename"])
def test_killed_elsewhere_and_run_again(make: Make, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    trial, weights = finished(make("whole"), Report())
    calls = 0

    def deadly(real: Callable[..., Any], at: int, after: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at and not after:
                raise KilledError
            result = real(*arguments, **options)
            if calls == at:
                raise KilledError
            return result

        return call

    workspace = make()
    _ = workspace.tokens  # its stages and those before it are renamed too
    with monkeypatch.context() as patch:
        if where == "journal":
            patch.setattr(Journal, "append", deadly(Journal.append, 5, after=False))
        elif where == "checkpoint":
            patch.setattr(Checkpoints, "save", deadly(Checkpoints.save, 4, after=True))
        elif where == "record":
            patch.setattr(module, "to_json", deadly(module.to_json, 1, after=False))
        elif where == "model":
            patch.setattr(module, "save_encoder", deadly(module.save_encoder, 1, after=True))
        else:
            patch.setattr(Path, "rename", deadly(Path.rename, 1, after=False))
            patch.setattr(Checkpoints, "save", lambda *arguments: None)
        with pytest.raises(KilledError):
            finished(workspace, Report())
    again, same = finished(make(), report := Report())
    assert state_equal(same, weights)
    assert timeless(again) == timeless(trial)
    assert counts(again) == counts(trial)
    assert report.values == [(p.step, p.validation) for p in trial.curve if p.validation is not None]


def test_a_real_kill(make: Make) -> None:
    trial, weights = finished(make("whole"), Report())
    workspace = make()
    root = Path(__file__).parents[2]
    command = [sys.executable, tiny_trial.__file__, workspace.experiment.model_dump_json(), "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    stage = workspace.trial(run_of(workspace.experiment))
    assert not stage.done
    journal = stage.partial / "journal.jsonl"
    reported = Journal(journal).tail(0)[0]
    assert [entry.point.step for entry in reported] == [1, 2, 3, 4]
    with journal.open("a") as file:  # and a line that the kill cut off
        file.write('{"point": {"step": 5, "exam')
    again, same = finished(workspace, report := Report())
    assert state_equal(same, weights)
    assert timeless(again) == timeless(trial)
    assert counts(again) == counts(trial)
    assert report.points[:2] == [entry.point for entry in reported if entry.point.validation is not None]


def test_a_stage_is_named_by_what_its_result_depends_on(make: Make) -> None:
    def fingerprint(workspace: Workspace, **changes: Any) -> str:
        return workspace.trial(replace(run_of(workspace.experiment), **changes)).fingerprint

    base, settings = make(), make().experiment.training
    same = [
        fingerprint(base),
        fingerprint(make()),
        fingerprint(make(checkpoint_seconds=5.0)),
        fingerprint(make("another-store")),
        fingerprint(base, row="another-name"),
    ]
    assert len(set(same)) == 1
    seed = base.experiment.model_copy(update={"seed": 4})
    others = [
        fingerprint(base, loss="infonce"),
        fingerprint(base, parameters={"target": 0.3}),
        fingerprint(base, training=settings.model_copy(update={"learning_rate": 2e-3})),
        fingerprint(base, training=settings.model_copy(update={"validations": 2})),
        fingerprint(Workspace(seed)),
        *(base.trial(run).fingerprint for run in runs_of(base.experiment, base.experiment.recipes[1])),
    ]
    assert len({same[0], *others}) == 1 + len(others)


def test_a_run_that_another_row_made_is_known_by_the_row_that_asks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make()
    run = run_of(workspace.experiment)
    with pytest.raises(KilledError):
        run_trial(workspace, run, Report(2))
    renamed = replace(run, row="again")
    for state in ("stopped", "finished"):
        ours, theirs = trials_of(workspace, [run, renamed])
        assert (ours.name, theirs.name) == ("arm-adaptive", "again")
        assert ours.state == theirs.state == state
        assert [(cost.recipe, cost.trial) for cost in theirs.costs] == [("again", "again")] * 2
        assert replace(theirs, name=ours.name, costs=ours.costs) == ours
        run_trial(workspace, run, Report())


POINT = Progress(step=1, examples=4, device_seconds=0.5, loss=0.1, diagnostics={"margin": 0.25})
COSTS = (Cost(stage="training", device_seconds=2.0), Cost(stage="validation", tokens=3))


def test_a_record_by_hand(make: Make) -> None:
    run = replace(run_of(make().experiment), row="row", knobs={"target": 0.3})
    entries = [
        Entry(replace(POINT, validation=0.5), COSTS[:1]),
        Entry(replace(POINT, step=2, validation=0.4), COSTS),
        Entry(replace(POINT, step=3), ()),
    ]
    trial = record(run, entries, "stopped")
    assert (trial.name, trial.parameters, trial.state) == ("row target=0.3", {"target": 0.3}, "stopped")
    assert trial.validation == 0.4, "the last, not the best"
    # The precision of a run whose journal does not tell it, from before it did, is that of its settings.
    own = {"recipe": "row", "trial": "row target=0.3", "precision": "fp32"}
    assert trial.costs == tuple(replace(cost, **own) for cost in COSTS)
    told = [Entry(point, tuple(replace(cost, precision="bf16") for cost in costs)) for point, costs in entries]
    assert {cost.precision for cost in record(run, told, "stopped").costs} == {"bf16"}
    assert trial.curve == tuple(entry.point for entry in entries)
    assert trial.model is None
    nothing = record(run, [], "stopped")
    assert (nothing.validation, nothing.curve, nothing.costs) == (0.0, (), ())


def entries(count: int) -> list[Entry]:
    return [
        Entry(
            replace(POINT, step=step, loss=1 / step, validation=0.1 * step if step % 2 else None),
            COSTS if step % 2 else (),
        )
        for step in range(1, count + 1)
    ]


def test_a_journal_reads_what_was_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.read() == []
    assert journal.tail(7) == ([], 7)
    for entry in entries(5):
        journal.append(entry)
    assert journal.read() == entries(5)


@given(st.data())
def test_a_line_that_was_cut_off_is_dropped(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    for entry in entries(4):
        journal.append(entry)
    content = journal.path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    journal.path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    watched, offset = journal.tail(0)
    assert watched == entries(4)[:whole]
    assert journal.path.stat().st_size == cut, "who watches changes nothing"
    assert journal.read() == entries(4)[:whole]
    for entry in entries(4)[whole:]:
        journal.append(entry)
    assert journal.path.read_bytes() == content
    assert journal.tail(offset)[0] == entries(4)[whole:]


def test_a_tail_goes_on_where_it_was(tmp_path: Path) -> None:
    journal, seen, offset = Journal(tmp_path / "journal.jsonl"), [], 0
    for entry in entries(4):
        journal.append(entry)
        found, offset = journal.tail(offset)
        assert len(found) == 1
        seen += found
        assert journal.tail(offset) == ([], offset)
    assert seen == entries(4)
