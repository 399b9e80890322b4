"""Negatives that are mined anew during training: those of the encoder as it is then, the same after a kill and on any
number of ranks; what cannot go with it is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import tiny_flow

from data import BatchPlan, UserError
from orchestrator.config import load
from orchestrator.encoding import TokenCount
from orchestrator.group import Group
from orchestrator.refresh import Refresh
from orchestrator.runs import runs_of
from orchestrator.trial import read_trial, run_trial
from orchestrator.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_cpu")

MINED = "negatives={source: mined, depth: 12, skip: 1, refresh: %s}"


@pytest.fixture
def make(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Any:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)
    common = ("training.epochs=4", "recipes=[{recipe: infonce, loss: {temperature: 0.1}}]", "training.validations=4")
    return lambda *settings: Workspace(load(path, [*common, *settings]))


def run(workspace: Workspace, report: Any = lambda point: None) -> Any:
    spec = runs_of(workspace.experiment, workspace.experiment.recipes[0])[0]
    run_trial(workspace, spec, report)
    return read_trial(workspace.trial(spec), spec)


def test_the_ranking_is_that_of_the_encoder_as_it_is(make: Any, tmp_path: Path) -> None:
    workspace = make(MINED % 2)
    encoder, encoding = workspace.load_encoder(), workspace.encoding("fp32", None)
    for parameter in encoder.parameters():
        parameter.data *= 1.3  # it has learned something
    refresh, count = Refresh(workspace, tmp_path / "run", encoding), TokenCount()
    assert refresh(1, encoder, Group(), count).pools[0].rows.tolist() == workspace.negatives.pools[0].rows.tolist()
    assert count.tokens == 0
    found = refresh(2, encoder, Group(), count)
    queries = workspace.sources.queries
    q = encoding.embed(encoder, workspace.tokens.queries.take(queries)).numpy()
    d = encoding.embed(encoder, workspace.tokens.documents.take(range(60))).numpy()
    training = workspace.split[0].relevant
    relevant = dict(zip(training.query_row.tolist(), training.doc_row.tolist(), strict=True))
    for query, line, pool in zip(queries.tolist(), q @ d.T, found.pools[0].rows, strict=True):
        expected = [row for row in np.argsort(-line, kind="stable")[1:12].tolist() if row != relevant[query]]
        assert [row for row in pool.tolist() if row >= 0] == expected
    assert found.pools[0].rows.tolist() != workspace.negatives.pools[0].rows.tolist()
    tokens = workspace.tokens
    assert count.tokens == tokens.documents.lengths.sum() + tokens.queries.lengths[queries].sum()
    # Epoch 3 has those of epoch 2: nothing is encoded for it.
    again = refresh(3, encoder, Group(), count)
    assert again.pools[0].rows.tolist() == found.pools[0].rows.tolist()
    assert count.tokens == tokens.documents.lengths.sum() + tokens.queries.lengths[queries].sum()


def test_a_run_that_refreshes_is_another_run_and_pays_for_it(make: Any) -> None:
    plain, refreshed = (
        run(make(settings)) for settings in ("negatives={source: mined, depth: 12, skip: 1}", MINED % 1)
    )
    # The first epoch is the same, the others are not.
    losses = [[point.loss for point in trial.curve] for trial in (plain, refreshed)]
    assert losses[0][:4] == losses[1][:4]
    assert set(losses[0][4:]).isdisjoint(losses[1][4:])
    assert len(losses[1]) == 16
    assert plain.costs[0].examples == refreshed.costs[0].examples
    assert refreshed.costs[0].tokens > plain.costs[0].tokens + 3 * 60 * 5
    assert refreshed.costs[0].flops > plain.costs[0].flops
    assert not list(Path(refreshed.model).parent.glob("mined-*"))


def test_a_student_with_its_teachers_documents_searches_the_teachers_vectors(
    make: Any, tmp_path: Path, tiny_model: Path
) -> None:
    row = "{recipe: infonce, loss: {temperature: 0.1}, encoder: {layers: [0], document_encoder: teacher}}"
    teacher = f"teacher={{encoder: {{model: {tiny_model}, query_tokens: 16, document_tokens: 24}}}}"
    base = make(MINED % 1, f"recipes=[{row}]", teacher)
    base.teaching.make()
    student = base.for_run(runs_of(base.experiment, base.experiment.recipes[0])[0])
    encoder, encoding, count = student.load_encoder(), student.encoding("fp32", None), TokenCount()
    found = Refresh(student, tmp_path / "run", encoding)(1, encoder, Group(), count)
    queries = student.sources.queries
    q = encoding.embed(encoder, student.tokens.queries.take(queries)).numpy()
    d = encoding.embed(base.load_encoder(), student.tokens.documents.take(range(60))).numpy()
    for line, pool in zip(q @ d.T, found.pools[0].rows, strict=True):
        best = np.argsort(-line, kind="stable")[1:12].tolist()
        assert [row for row in pool.tolist() if row >= 0] == [row for row in best if row in pool]
    assert count.tokens == student.tokens.queries.lengths[queries].sum()


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("deadly", [1, 2, 3])
def test_killed_it_ends_the_same(make: Any, deadly: int) -> None:
    whole = run(make(MINED % 1, "training.checkpoint_seconds=0"))
    seen = []

    def kill(point: Any) -> None:
        seen.append(point)
        if len(seen) == deadly:
            raise KilledError

    other = "store=other-store"
    with pytest.raises(KilledError):
        run(make(MINED % 1, "training.checkpoint_seconds=0", other), kill)
    ended = run(make(MINED % 1, "training.checkpoint_seconds=0", other))
    values = [[(p.step, p.loss, p.validation) for p in trial.curve] for trial in (whole, ended)]
    assert values[0] == values[1]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_two_ranks_find_what_one_finds(make: Any, tmp_path: Path) -> None:
    workspace = make(MINED % 1)
    workspace.negatives  # noqa: B018 - the driver's part
    folder = tmp_path / "ranks"
    folder.mkdir()
    (folder / "experiment.json").write_text(workspace.experiment.model_dump_json())
    ranks.together("refreshed", folder)
    found = [json.loads((folder / f"rows-{rank}.json").read_text()) for rank in (0, 1)]
    encoder, count = workspace.load_encoder(), TokenCount()
    alone = Refresh(workspace, tmp_path / "run", workspace.encoding("fp32", None))(1, encoder, Group(), count)
    assert found[0]["rows"] == found[1]["rows"] == alone.pools[0].rows.tolist()
    assert found[0]["tokens"] + found[1]["tokens"] == count.tokens
    assert not list((folder / "run").glob("*/part-*"))


def test_several_sources_of_which_one_is_refreshed(make: Any, tmp_path: Path) -> None:
    mix = "negatives={mix: [{source: bm25, depth: 5}, {source: mined, depth: 9, refresh: 1}, {source: random}]}"
    workspace = make(mix)
    encoder = workspace.load_encoder()
    for parameter in encoder.parameters():
        parameter.data *= 1.3
    refresh = Refresh(workspace, tmp_path / "run", workspace.encoding("fp32", None))
    before, after = workspace.negatives, refresh(1, encoder, Group(), TokenCount())
    assert [pool.source for pool in after.pools] == ["bm25", "mined"]
    assert after.pools[0].rows.tolist() == before.pools[0].rows.tolist()
    assert after.pools[1].rows.tolist() != before.pools[1].rows.tolist()


def test_the_plan_draws_from_what_it_is_given(make: Any) -> None:
    workspace = make(MINED % 1)
    training = workspace.experiment.training
    plan = workspace.plan(training)
    assert isinstance(plan, BatchPlan)
    assert [plan.epoch_of(step) for step in (0, 3, 4, 15)] == [0, 0, 1, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("negatives={source: bm25, refresh: 1}",),
         "--set negatives.refresh: says nothing of bm25 negatives. It is for mined."),
        (("negatives={source: mined, refresh: 1, check: {model: m}}",),
         "--set negatives.check: is not made of what is mined during training. Remove it or refresh, or"),
        (("negatives={source: mined, refresh: 0}",), "--set negatives.refresh: must be greater than 0, not 0"),
        ((MINED % 1, "teacher={cross_encoder: {model: m}}", "recipes=[score-kl]"),
         "--set recipes.0: score-kl needs scores of its pairs before it trains, and refreshed negatives are not known"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Any, settings: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        make(*settings)
    assert str(refused.value).startswith(message)
