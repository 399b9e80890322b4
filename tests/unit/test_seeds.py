"""Several seeds, pinned: what was chosen is trained again with each; the split is that of the first seed, and what a
run with it is called and gives does not change; measures are means; a further seed is charged to no recipe.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_flow

from orchestrator import compare
from orchestrator.compare import Job
from orchestrator.config import RecipeSettings, load, resolved
from orchestrator.console import Display
from orchestrator.plan import describe
from orchestrator.records import comparison_from_json, to_json
from orchestrator.report import details, latex, markdown, table, wording
from orchestrator.runs import RunSpec, runs_of
from orchestrator.trial import run_trial
from orchestrator.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_cpu")
ROWS = "[{recipe: static-margin, tune: {space: {target: [0.3, 1.0]}}}, arm-adaptive]"


@pytest.fixture
def path(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Path:
    return tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)


@pytest.fixture
def job(path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """One that trains in this process."""

    def run(job: Job, rows: list[RecipeSettings], again: list[RunSpec] = []) -> None:  # noqa: B006
        for each in [run for row in rows for run in runs_of(job.experiment, row)] + again:
            run_trial(job.workspace, each, lambda point: None)

    monkeypatch.setattr(Job, "_run", run)
    monkeypatch.setattr(compare.Job, "fingerprint", "f")
    return Job(load(path, [f"recipes={ROWS}", "seeds=[13, 14, 15]"]), Display())


def test_the_first_seed_is_the_experiments(path: Path) -> None:
    experiment = load(path, ["seeds=[14, 13]"])
    assert (experiment.seed, experiment.further_seeds) == (14, (13,))
    path.write_text(resolved(experiment))
    assert load(path) == experiment


def test_a_further_seed_changes_what_is_random_in_a_run_and_not_the_split(path: Path) -> None:
    one, several = (Workspace(load(path, settings)) for settings in ([], ["seeds=[13, 14]"]))
    run = runs_of(several.experiment, several.experiment.recipes[1])[0]
    again = run.with_seed(14)
    assert (run.name, again.name) == ("arm-adaptive", "arm-adaptive seed=14")
    assert several.trial(run).fingerprint == one.trial(run).fingerprint, "a run that was made is found again"
    assert several.trial(again).fingerprint != several.trial(run).fingerprint
    first, other = several.for_run(run), several.for_run(again)
    for mine, its in zip(first.split, other.split, strict=True):
        assert np.array_equal(mine.query_row, its.query_row)
    assert np.array_equal(first.pool, other.pool)
    batches = [each.plan(run.training).batch(0) for each in (first, other)]
    assert not np.array_equal(batches[0].queries, batches[1].queries)
    (alone,) = (Workspace(load(path, ["seed=14"])),)
    assert alone.trial(replace(run, seed=14)).fingerprint != several.trial(again).fingerprint, "its split is another"


def test_a_worker_opens_the_seed_of_its_run(job: Job) -> None:
    again = runs_of(job.experiment, job.experiment.recipes[1])[0].with_seed(15)
    workspace = job.workspace.for_run(again)
    opened = Workspace.of(workspace.opened).for_run(again)
    assert opened.trial(again).fingerprint == job.workspace.trial(again).fingerprint
    batches = [each.plan(again.training).batch(1) for each in (workspace, opened)]
    assert np.array_equal(batches[0].negatives, batches[1].negatives)


def test_measures_are_means_and_further_seeds_are_charged_to_nobody(job: Job) -> None:
    trials = job.train()
    again = job.train_again(trials)
    evaluated = job.evaluate(trials)
    found = job._comparison(trials, again, evaluated)
    assert [len(values) for values in evaluated.values()] == [1, 3, 3]
    untrained, tuned, adaptive = found.results
    assert untrained.seeds == ()
    for result in (tuned, adaptive):
        assert [each.seed for each in result.seeds] == [13, 14, 15]
        assert result.seeds[0].trial.name == result.winner
        values = [each.measures["nDCG@10"] for each in result.seeds]
        assert len(set(values)) > 1
        assert result.measures["nDCG@10"] == pytest.approx(np.mean(values))
        assert result.spread("nDCG@10") == pytest.approx(np.std(values, ddof=1))
        per_query = [each.per_query["nDCG@10"] for each in evaluated[result.name]]
        for query, value in result.per_query["nDCG@10"].items():
            assert value == pytest.approx(np.mean([each[query] for each in per_query]))
        assert {each.trial.parameters.get("target") for each in result.seeds} == {
            result.winning_trial.parameters.get("target")
        }
    assert {each.seeds for each in found.differences} == {3}

    one = replace(found, results=tuple(replace(each, seeds=()) for each in found.results))
    own = {cost.trial for result in found.results for trial in result.trials for cost in trial.costs}
    without = replace(one, costs=tuple(c for c in found.costs if c.trial in own or c.recipe is None))
    assert [row.all_seconds for row in table.rows(found)] == [row.all_seconds for row in table.rows(without)]
    assert sum(cost.device_seconds for cost in found.costs) > sum(cost.device_seconds for cost in without.costs)

    assert comparison_from_json(json.loads(json.dumps(to_json(found)))) == found
    said = "Means over the seeds 13, 14 and 15"
    assert said in " ".join(wording.sentences(found))
    shown = wording.value(table.rows(found)[2], "nDCG@10")
    assert shown == f"{adaptive.measures['nDCG@10']:.4f} ± {adaptive.spread('nDCG@10'):.4f}"
    assert shown in markdown.page(found)
    assert shown.replace("±", r"$\pm$").partition(" ")[2] in latex.page(found)
    assert any("over queries and seeds" in " ".join(each.caption.split()) for each in details.details(found))


def test_the_plan_tells_of_them(path: Path) -> None:
    planned = {line.stage: line.what for line in describe(load(path, [f"recipes={ROWS}", "seeds=[13, 14, 15]"]))}
    assert planned["train again"] == "2 run(s) a row, of what validation chooses, with the seed(s) 14, 15"
    assert planned["evaluate"] == "7 encoders on the test split"


def test_nothing_is_trained_again_without_further_seeds(job: Job, path: Path) -> None:
    alone = Job(load(path, ["recipes=[arm-adaptive]"]), Display())
    trials = alone.train()
    assert alone.train_again(trials) == {"arm-adaptive": ()}
    found = alone._comparison(trials, {"arm-adaptive": ()}, alone.evaluate(trials))
    assert [result.seeds for result in found.results] == [(), ()]
    assert "One seed" in " ".join(wording.sentences(found))
