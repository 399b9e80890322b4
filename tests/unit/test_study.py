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
        ("training.batch_size: 64", "expected: []",
         "14: vary.batch.64.expected: \"expected\" is the whole study's. Remove it."),
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


EXPECTED = """\
expected:
  - setting: {student: six layers, batch: 64}
    row: infonce
    measure: nDCG@10
    value: 0.5
    tolerance: 0.01
    source: s
"""


def test_what_is_expected_is_said_of_a_setting(path: Path) -> None:
    path.write_text(TEXT + EXPECTED)
    (expected,) = load(path).expected
    assert expected.setting == {"student": "six layers", "batch": "64"}, "a label is text"
    found = {each.experiment.name: each.experiment.expected for each in variants(path)}
    assert [len(each) for each in found.values()] == [0, 1, 0, 0]
    assert found["s.six-layers.64"] == (expected.model_copy(update={"setting": {}}),), "which stands alone"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("student: six layers, batch", "batch", "16: expected.0.setting: does not say which student, and each setting "
         "of a study has numbers of its own. Add student: six layers or three layers."),
        ("six layers, batch", "six layer, batch", '16: expected.0.setting.student: student has no label "six layer". '
         'Did you mean "six layers"?'),
        ("batch: 64}\n    row", "batch: 64, bach: 3}\n    row", '16: expected.0.setting.bach: "bach" is nothing that '
         'varies. Did you mean "batch"?'),
        ("row: infonce", "row: infonc", '17: expected.0.row: there is no row "infonc". Did you mean "infonce"?'),
        ("measure: nDCG@10", "measure: nDCG@5", '18: expected.0.measure: "nDCG@5" is not measured. Add it to '
         "evaluation.measures, or take nDCG@10 or RR@10 or R@100."),
    ],
)  # fmt: skip
def test_what_no_setting_has_cannot_be_expected(path: Path, old: str, new: str, message: str) -> None:
    text = TEXT + EXPECTED
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value) == f"{path}:{message}"


def test_one_setting_alone_expects_nothing_of_the_study(path: Path) -> None:
    path.write_text(TEXT + EXPECTED)
    with pytest.raises(
        UserError, match=r"nothing varies here\. Remove it \(where vary=null was set, set expected=\[\] too\)"
    ):
        load(path, ["vary=null"])
    assert load(path, ["vary=null", "expected=[]"]).expected == ()


@pytest.fixture
def tiny(tmp_path: Path, tiny_collection: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny experiment, with one layer and with two, trained in this process."""
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts
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
    files = {"report.html", "report.md", "report.tex", "study.json"}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == files
    assert CliRunner().invoke(cli.app, ["compare", str(tiny)]).exit_code == 0, "nothing is logged twice"
    assert len(client.search_runs([run.info.experiment_id])) == 1 + 2 * (1 + 3 + 3)

    again = CliRunner().invoke(cli.app, ["report", str(tiny)])
    assert again.exit_code == 0, again.output
    assert "The search of static-margin took" in again.stdout
    assert (reports / "tiny" / "report.html").read_text() == page
    planned = CliRunner().invoke(cli.app, ["plan", str(tiny), "--json"])
    assert [each["what"] for each in json.loads(planned.stdout) if each["stage"] == "setting"] == ["one", "two"]

    # What is expected of one setting is looked for in its comparison; R@100 of 60 documents is 1.
    rest = "row: arm-adaptive, measure: R@100, tolerance: 0.0, source: by hand"
    numbers = [f"{{setting: {{layers: {each}}}, value: {value}, {rest}}}" for each, value in (("two", 1), ("one", 0.4))]
    reproduce = ["reproduce", str(tiny), "--set", f"expected=[{', '.join(numbers)}]"]
    made = CliRunner().invoke(cli.app, reproduce)
    assert made.exit_code == 1, made.output
    lines = [line.split() for line in made.stdout.splitlines()]
    assert lines[0][:3] == ["setting", "row", "number"]
    assert lines[1][:5] == ["one", "arm-adaptive", "R@100", "0.4000", "±0"]
    assert [line[7] for line in lines[1:3]] == ["MOVED", "ok"]
    assert "1 of 2 numbers came out within their tolerance, 1 moved." in made.stdout
    told = json.loads(CliRunner().invoke(cli.app, [*reproduce, "--json"]).stdout)
    found = [(each["setting"], each["found"], each["moved"]) for each in told["checks"]]
    assert found == [("one", 1.0, True), ("two", 1.0, False)]


def test_a_verb_that_takes_one_setting_says_so(tiny: Path) -> None:
    for verb in ("prepare", "train", "evaluate"):
        with pytest.raises(UserError, match="this is a study that varies layers"):
            CliRunner().invoke(cli.app, [verb, str(tiny)], catch_exceptions=False)


def test_an_unfinished_study_has_no_report(tiny: Path) -> None:
    with pytest.raises(UserError, match="no finished comparison") as error:
        CliRunner().invoke(cli.app, ["report", str(tiny)], catch_exceptions=False)
    assert str(error.value).endswith(f"Run: stillhouse compare {tiny}")
