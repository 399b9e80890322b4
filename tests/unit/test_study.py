"""Studies, pinned: an experiment for every combination, with a name of its own; what a setting brings in is blamed on
its line; every comparison is made, and the report has each setting and the range over all of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_flow
from mlflow import MlflowClient
from typer.testing import CliRunner

from data import UserError
from orchestrator import cli, compare
from orchestrator.config import RecipeSettings, load, resolved, variants
from orchestrator.runs import runs_of
from orchestrator.trial import run_trial

TEXT = """\
name: s
collection: {path: c}
encoder: {model: m}
recipes: [arm-adaptive, {recipe: infonce, tune: {space: {temperature: [0.05, 0.5]}}}]
training: {epochs: 1}
vary:
  student:
    six layers: {}
    three layers:
      encoder.layers: [0, 2, 5]
      training.learning_rate: 2e-4
  batch:
    32: {training.batch_size: 32}
    64: {training.batch_size: 64}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.yaml"
    file.write_text(TEXT)
    return file


def test_every_combination_is_an_experiment_that_stands_alone(path: Path) -> None:
    found = variants(path, ["training.epochs=3"])
    assert [each.labels for each in found] == [
        {"student": student, "batch": batch} for student in ("six layers", "three layers") for batch in ("32", "64")
    ]
    names = ["s.six-layers.32", "s.six-layers.64", "s.three-layers.32", "s.three-layers.64"]
    assert [each.experiment.name for each in found] == names
    assert [each.experiment.encoder.layers for each in found] == [None, None, (0, 2, 5), (0, 2, 5)]
    assert [each.experiment.training.batch_size for each in found] == [32, 64, 32, 64]
    assert {each.experiment.tracking.experiment for each in found} == {"s"}
    assert {each.experiment.training.epochs for each in found} == {3}
    for each in found:
        path.write_text(resolved(each.experiment))
        assert load(path) == each.experiment, "it is an experiment like any other"


def test_a_setting_is_laid_over_what_the_command_line_says(path: Path) -> None:
    assert [each.experiment.training.batch_size for each in variants(path, ["training.batch_size=8"])] == [32, 64] * 2
    assert load(path, ["vary=null"]).vary == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("training.batch_size: 64", "training.batch_size: 0",
         "14: vary.batch.64.training.batch_size: must be greater than 0, not 0"),
        ("training.learning_rate", "training.lerning_rate", '11: vary.student.three layers.training.lerning_rate: '
         '"lerning_rate" is not a key here. Did you mean "learning_rate"?'),
        ("encoder.layers: [0", "store: [0",
         "10: vary.student.three layers.store: \"store\" is the whole study's. Remove it."),
        ("training.learning_rate: 2e-4", "recipes.7.name: a",
         '11: vary.student.three layers.recipes.7.name: "7" is not an item of the list. Items here: 0 to 1.'),
        ("training: {epochs: 1}", "expected: [{row: infonce, measure: nDCG@10, value: 1, tolerance: 1, source: s}]",
         "5: expected: is said of one comparison, and this is a study of several. Remove it, or write an experiment of "
         "one setting."),
        ("six layers: {}", "three-layers: {}", "6: vary: two settings have labels that make the same name, "
         "s.three-layers.32. Change one."),
        ("  batch:", "  '':", "12: vary..[key]: must not be empty"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(path: Path, old: str, new: str, message: str) -> None:
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value) == f"{path}:{message}"


@pytest.fixture
def tiny(tmp_path: Path, tiny_collection: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny experiment, with one layer and with two, trained in this process."""
    file = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)
    rows = "recipes=[{recipe: static-margin, tune: {space: {target: [0.3, 1.0]}}}, arm-adaptive]"
    whole = load(file, [rows, "vary={layers: {one: {encoder.layers: [0]}, two: {}}}"])
    file.write_text(resolved(whole))

    def run(job: compare.Job, rows: list[RecipeSettings]) -> None:
        for each in [run for row in rows for run in runs_of(job.experiment, row)]:
            run_trial(job.workspace, each, lambda point: None)

    monkeypatch.setattr(compare.Job, "_run", run)
    return file


@pytest.mark.usefixtures("one_cpu")
def test_every_setting_is_compared_and_the_whole_reported(tiny: Path) -> None:
    made = CliRunner().invoke(cli.app, ["compare", str(tiny), "--json"])
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert [each["labels"] for each in told["settings"]] == [{"layers": "one"}, {"layers": "two"}]
    for each in told["settings"]:
        (pair,) = each["speed_ups"]
        assert (pair["row"], pair["over"], pair["times"]["search"]["examples"]) == ("arm-adaptive", "static-margin", 2)
    reports = tiny.parent / "store" / "reports"
    assert {folder.name for folder in reports.iterdir()} == {"tiny", "tiny.one", "tiny.two"}
    page = (reports / "tiny" / "report.html").read_text()
    assert 'href="../tiny.two/report.html"' in page
    marked = (reports / "tiny" / "report.md").read_text()
    one, two = (
        json.loads((reports / f"tiny.{name}" / "comparison.json").read_text())["results"][2]["measures"]["nDCG@10"]
        for name in ("one", "two")
    )
    assert f"{one:.4f}" in marked
    assert f"{two:.4f}" in marked

    client = MlflowClient(tracking_uri=f"sqlite:///{tiny.parent}/mlflow.db")
    (run,) = client.search_runs(
        [client.get_experiment_by_name("tiny").experiment_id], "tags.`stillhouse.kind` = 'study'"
    )
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.metrics["speed_up/arm-adaptive_over_static-margin/search_examples"] == 2
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"report.html", "report.md", "study.json"}
    assert CliRunner().invoke(cli.app, ["compare", str(tiny)]).exit_code == 0, "nothing is logged twice"
    assert len(client.search_runs([run.info.experiment_id])) == 1 + 2 * (1 + 3 + 3)

    again = CliRunner().invoke(cli.app, ["report", str(tiny)])
    assert again.exit_code == 0, again.output
    assert "The search of static-margin took" in again.stdout
    assert (reports / "tiny" / "report.html").read_text() == page
    planned = CliRunner().invoke(cli.app, ["plan", str(tiny), "--json"])
    assert [each["what"] for each in json.loads(planned.stdout) if each["stage"] == "setting"] == ["one", "two"]


def test_a_verb_that_takes_one_setting_says_so(tiny: Path) -> None:
    for verb in ("prepare", "train", "evaluate"):
        with pytest.raises(UserError, match="this is a study that varies layers"):
            CliRunner().invoke(cli.app, [verb, str(tiny)], catch_exceptions=False)


def test_an_unfinished_study_has_no_report(tiny: Path) -> None:
    with pytest.raises(UserError, match="no finished comparison") as error:
        CliRunner().invoke(cli.app, ["report", str(tiny)], catch_exceptions=False)
    assert str(error.value).endswith(f"Run: stillhouse compare {tiny}")
