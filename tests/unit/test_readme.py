"""What is pinned: the README and the page of what an experiment can say tell the truth. Their commands exist, the YAML
is the quickstart and what it can be made to say, the Python runs.
"""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from orchestrator.cli import app
from orchestrator.config import load, variants
from orchestrator.config_schema import PricesSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MORE = (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README + MORE, flags=re.M | re.S)


def commands():
    """Each stillhouse command of a code block, without its comment, as words after the program's name."""
    for _, block in BLOCKS:
        for line in block.splitlines():
            command = line.partition("  #")[0]
            if match := re.search(r"(?:^stillhouse|python -m orchestrator) (.*)", command):
                yield shlex.split(match[1])


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_its_commands_exist_and_their_experiments_load(words):
    verb, experiment, *rest = words
    assert verb in typer.main.get_command(app).commands
    overrides = [value for option, value in pairwise(rest) if option == "--set"]
    assert load(experiment, overrides).recipes


def test_there_are_commands():
    assert len(list(commands())) >= 6


def test_its_experiment_is_the_quickstart(tmp_path):
    written, negatives, searched, taught, students, towers, generated, varied, prices, expected = [
        block for language, block in BLOCKS if language == "yaml"
    ]
    (tmp_path / "x.yaml").write_text(written, encoding="utf-8")
    quickstart = load(tmp_path / "x.yaml")
    assert quickstart == load("experiments/quickstart.yaml").model_copy(update={"expected": ()})
    other = tmp_path / "y.yaml"
    other.write_text(re.sub(r"^negatives:.*\n", negatives, written, flags=re.M), encoding="utf-8")
    mixed = load(other).negatives
    assert [(source.source, source.weight) for source in mixed.sources] == [("mined", 3.0), ("random", 1.0)]
    other.write_text(re.sub(r"^recipes:\n(  - .*\n)+", searched, written, flags=re.M), encoding="utf-8")
    assert [row.tune and row.tune.search for row in load(other).recipes] == ["grid", "tpe", "random"]
    other.write_text(re.sub(r"^recipes:\n(  - .*\n)+", taught, written, flags=re.M), encoding="utf-8")
    assert [row.recipe for row in load(other).recipes] == ["margin-mse", "score-kl", "embedding-matching"]
    other.write_text(re.sub(r"^recipes:\n(  - .*\n)+", students, written, flags=re.M), encoding="utf-8")
    trained = load(other)
    assert trained.teaching_row == trained.recipes[0]
    assert [trained.encoder_for(row).inherits for row in trained.recipes] == [False, False, True, False]
    other.write_text(re.sub(r"^(encoder|recipes):.*\n(  .*\n)+", "", written, flags=re.M) + towers, encoding="utf-8")
    frozen = load(other)
    assert frozen.encoder_for(frozen.recipes[0]).inherits
    assert frozen.teacher
    assert frozen.teacher.encoder == frozen.encoder
    other.write_text(re.sub(r"^recipes:\n(  - .*\n)+", generated, written, flags=re.M), encoding="utf-8")
    made = load(other)
    assert [made.training_for(row).queries for row in made.recipes] == ["judged", "both", "generated"]
    other.write_text(written + varied, encoding="utf-8")
    assert len(variants(other)) == 4
    other.write_text(written + prices, encoding="utf-8")
    assert load(other).prices == PricesSettings(cpu=0.04, cuda=2.5, currency="USD")
    other.write_text(written + expected, encoding="utf-8")
    known = load("experiments/quickstart.yaml").expected
    assert all(each in known for each in load(other).expected)


def test_its_python_runs():
    names: dict[str, object] = {}
    (written,) = [block for language, block in BLOCKS if language == "python"]
    exec(written, names)
    out = names["out"]
    assert out.per_example.shape == (8,)
    assert out.per_example.mean().item() == pytest.approx(out.loss.item())


def test_its_make_targets_and_links_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([\w-]+)", README, flags=re.M))
    assert {"demo", "test", "check"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)
    for text, folder in ((README, ROOT), (MORE, ROOT / "docs")):
        links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
        assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("experiment", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_loads(experiment):
    assert load(experiment).name == experiment.stem
