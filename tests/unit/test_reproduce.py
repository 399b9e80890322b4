"""Pins: what counts as moved, by hand; what `expected` may not say; and that `reproduce` ends with 0 or 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data import UserError
from orchestrator import cli, compare
from orchestrator.config import load
from orchestrator.console import Display
from orchestrator.records import Comparison, Cost, Result, Trial
from orchestrator.reproduce import changes, check, summary, within

YAML = """\
name: x
collection: {path: c}
encoder: {model: m}
recipes:
  - {recipe: infonce, tune: {space: {temperature: [0.05, 0.1]}}}
  - arm-adaptive
expected:
"""
SEEN = """\
  - {row: infonce, measure: nDCG@10, value: 0.58, tolerance: 0.002, source: "measured, here"}
  - {row: untrained, measure: MRR@10, value: 0.4, tolerance: 0.01, source: published}
  - {row: arm-adaptive, speed_up_over: infonce, value: 3.0, tolerance: 0.5, source: "measured, here"}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(YAML + SEEN)
    return tmp_path / "x.yaml"


def comparison(ndcg: float = 0.58, seconds: float = 10.0) -> Comparison:
    """Tuned infonce took 30 device seconds in two trials, arm-adaptive `seconds`."""

    def row(recipe: str, *costs: float) -> Result:
        trials = [
            Trial(
                f"{recipe}{n}", {}, "finished", 0.5, (), (Cost("training", recipe, f"{recipe}{n}", device_seconds=s),)
            )
            for n, s in enumerate(costs)
        ]
        free = recipe == "arm-adaptive"
        return Result(recipe, recipe, free, tuple(trials), trials[0].name, {"nDCG@10": ndcg, "RR@10": 0.5}, {})

    untrained = Result("untrained", "untrained", True, (), None, {"nDCG@10": 0.3, "RR@10": 0.392}, {})
    results = untrained, row("infonce", 20.0, 10.0), row("arm-adaptive", seconds)
    costs = tuple(cost for result in results for trial in result.trials for cost in trial.costs)
    return Comparison(
        "x", "f", "c", 5, 3, 1, 1, "m", ("nDCG@10", "RR@10"), results, costs, "", {"machine": "a PC", "torch": "2"}
    )


def test_what_came_out(file: Path) -> None:
    experiment = load(file)
    checks = check(experiment, comparison())
    assert [(each.row, each.what, each.expected, each.found, each.moved) for each in checks] == [
        ("infonce", "nDCG@10", 0.58, 0.58, False),
        ("untrained", "RR@10", 0.4, 0.392, False),
        ("arm-adaptive", "speed-up over infonce", 3.0, 3.0, False),
    ]
    assert [each.source for each in checks] == ["measured, here", "published", "measured, here"]
    assert summary(checks) == "3 of 3 numbers came out within their tolerance"
    moved = check(experiment, comparison(ndcg=0.5775, seconds=15.0))
    assert [each.moved for each in moved] == [True, False, True]
    assert moved[2].found == 2.0
    assert summary(moved) == "1 of 3 numbers came out within their tolerance, 2 moved"


def test_a_number_that_is_not_there_has_moved(file: Path) -> None:
    checks = check(load(file), comparison(seconds=0.0))
    assert (checks[2].found, checks[2].moved) == (None, True)


@pytest.mark.parametrize(
    ("found", "expected", "tolerance", "held"),
    [
        (0.582, 0.58, 0.002, True),  # in floating point the difference is a little more
        (0.578, 0.58, 0.002, True),
        (0.5821, 0.58, 0.002, False),
        (0.58, 0.58, 0.0, True),
        (0.5800001, 0.58, 0.0, False),
        (8.3, 6.2, 2.0, False),
    ],
)
def test_the_tolerance_itself_is_allowed(found: float, expected: float, tolerance: float, held: bool) -> None:
    assert within(found, expected, tolerance) is held


def test_which_settings_change_numbers() -> None:
    given = ["store=/tmp/x", "tracking.uri=sqlite:///y.db", "training.epochs=3", "seed=14", "name=other"]
    assert changes(given) == ["training.epochs=3", "seed=14"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{row: infonc, measure: nDCG@10, value: 0.5, tolerance: 0.1, source: s}",
         'x.yaml:8: expected.0.row: there is no row "infonc". Did you mean "infonce"?'),
        ("{row: infonce, measure: nDCG@5, value: 0.5, tolerance: 0.1, source: s}",
         'x.yaml:8: expected.0.measure: "nDCG@5" is not measured. Add it to evaluation.measures, or take nDCG@10 or'),
        ("{row: infonce, measure: NDGC@5, value: 0.5, tolerance: 0.1, source: s}", "is not a measure"),
        ("{row: infonce, value: 0.5, tolerance: 0.1, source: s}", "must have one of measure and speed_up_over"),
        ("{row: arm-adaptive, measure: nDCG@10, speed_up_over: infonce, value: 1.0, tolerance: 0.1, source: s}",
         "must have one of measure and speed_up_over"),
        ("{row: infonce, measure: nDCG@10, value: 0.5, tolerance: 0.1, source: ''}", "source: must not be empty"),
        ("{row: infonce, measure: nDCG@10, value: 0.5, tolerance: 0.1}", "source: is missing"),
        ("{row: infonce, measure: nDCG@10, value: 0.5, tolerance: -0.1, source: s}", "must be at least 0, not -0.1"),
        ("{row: infonce, speed_up_over: arm-adaptive, value: 0.5, tolerance: 0.1, source: s}",
         "expected.0.row: infonce has no speed-up, which is that of a parameter-free recipe. Rows: arm-adaptive."),
        ("{row: arm-adaptive, speed_up_over: untrained, value: 0.5, tolerance: 0.1, source: s}",
         'expected.0.speed_up_over: there is no row with knobs "untrained". Rows: infonce.'),
        ("{row: teacher, measure: nDCG@10, value: 0.5, tolerance: 0.1, source: s}", 'there is no row "teacher"'),
    ],
)  # fmt: skip
def test_what_cannot_be_expected_is_refused_before_anything_runs(file: Path, line: str, message: str) -> None:
    file.write_text(f"{YAML}  - {line}\n")
    with pytest.raises(UserError) as refused:
        load("x.yaml")
    assert message in str(refused.value)


@pytest.fixture
def reproduce(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The verb, on a comparison that is there: its exit status, what it printed, and what it said beside."""

    def run(made: Comparison, *arguments: str) -> tuple[Any, str, str]:
        outcome = compare.Outcome(made, file.parent / "report.html", None)
        monkeypatch.setattr(compare.Job, "compare", lambda self: outcome)
        monkeypatch.setattr("sys.argv", ["stillhouse", "reproduce", "x.yaml", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    return run


def test_the_verb(reproduce: Any, file: Path) -> None:
    status, output, _ = reproduce(comparison())
    assert status == 0
    assert [line.split()[:6] for line in output.splitlines()[1:3]] == [
        ["infonce", "nDCG@10", "0.5800", "±0.002", "0.5800", "+0.0000"],
        ["untrained", "RR@10", "0.4000", "±0.01", "0.3920", "−0.0080"],
    ]
    assert "3 of 3 numbers came out within their tolerance. Here: a PC, torch 2." in output
    assert "was changed" not in output
    status, output, _ = reproduce(comparison(ndcg=0.5), "--set", "seed=14", "--set", "store=y")
    assert status == 1
    assert "MOVED" in output.splitlines()[1]
    assert "The experiment was changed, so these need not be its numbers: --set seed=14\n" in output


def test_as_json(reproduce: Any) -> None:
    status, output, _ = reproduce(comparison(ndcg=0.5), "--json", "--set", "seed=14")
    said = json.loads(output)
    assert status == 1
    assert (said["experiment"], said["changed"], said["moved"]) == ("x", ["seed=14"], True)
    assert said["checks"][0] == {
        "setting": "", "row": "infonce", "what": "nDCG@10", "expected": 0.58, "tolerance": 0.002, "found": 0.5,
        "moved": True, "source": "measured, here",
    }  # fmt: skip


def test_an_experiment_that_expects_nothing(reproduce: Any, file: Path) -> None:
    file.write_text(YAML.replace("expected:\n", ""))
    status, _, errors = reproduce(comparison())
    assert status == 2
    assert errors == (
        "x.yaml: expected: the experiment expects no number. Add the section, or run: stillhouse compare x.yaml\n"
    )


def test_what_is_expected_is_no_part_of_a_comparison(file: Path, tiny_collection: Path, tiny_model: Path) -> None:
    here = [f"collection.path={tiny_collection}", f"encoder.model={tiny_model}", "encoder.query_tokens=16"]
    here += ["encoder.document_tokens=16", "training.batch_size=8"]
    known = {
        compare.Job(load(file, [*here, more]), Display()).fingerprint for more in ("expected=[]", "store=.stillhouse")
    }
    assert len(known) == 1
