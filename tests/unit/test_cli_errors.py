"""Pins: whatever a user can mend ends with status 2 and one line that says what, where and how; Ray is not started for
it, nothing is reported, and no traceback is seen.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_flow

from orchestrator import cli, cluster
from orchestrator.config import load
from orchestrator.workspace import Workspace

PROGRESS = re.compile(r" ?\d+:\d\d  ")
Refusal = Callable[..., str]


@pytest.fixture
def experiment(tmp_path: Path, tiny_collection: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny experiment on a collection of its own, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "local_cpus", lambda: 4)
    monkeypatch.setattr(cluster, "connected", lambda: False)  # a Ray of other tests does not count
    shutil.copytree(tiny_collection, tmp_path / "collection")
    return tiny_flow.write_experiment(tmp_path, Path("collection"), tiny_model)


@pytest.fixture
def refusal(experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """`refusal("compare", "--set", …)`: the one line that is left on standard error beside those of progress."""

    def run(verb: str, *arguments: str, file: Path = experiment) -> str:
        monkeypatch.setattr("sys.argv", ["stillhouse", verb, str(file.name), *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        assert end.value.code == 2
        assert "starting Ray" not in output.err
        assert not list(Path.cwd().glob("**/reports"))
        (line,) = (line for line in output.err.splitlines() if not PROGRESS.match(line))
        return line

    return run


def replace_line(file: Path, number: int, line: str) -> None:
    lines = file.read_text().splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines) + "\n")


# The command line


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["compair", "tiny.yaml"], "No such command 'compair'"),
        (["compare", "tiny.yaml", "--epochs", "3"], "No such option: --epochs"),
        (["compare"], "Missing argument 'EXPERIMENT.yaml'"),
    ],
)
def test_a_command_that_is_none(
    arguments: list[str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stillhouse", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert what in error
    assert "Traceback" not in error


def test_a_bad_override(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "seed") == (
        "--set seed: is not KEY=VALUE. Write, for example, --set training.epochs=3."
    )
    assert refusal("plan", "--set", "training.epochs=many") == (
        '--set training.epochs: must be a whole number, not "many"'
    )


# The experiment


@pytest.mark.parametrize("verb", ["compare", "prepare", "mine", "train", "tune", "evaluate", "report", "plan"])
def test_no_experiment(refusal: Refusal, verb: str) -> None:
    assert refusal(verb, file=Path("missing.yaml")) == "missing.yaml: there is no such file. Check the path."


def test_a_misspelt_key(refusal: Refusal, experiment: Path) -> None:
    experiment.write_text(experiment.read_text().replace("epochs: 2", "epoch: 2"))
    assert refusal("compare") == ('tiny.yaml:4: training.epoch: "epoch" is not a key here. Did you mean "epochs"?')


def test_a_tracking_uri_that_mlflow_has_no_store_for(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "tracking.uri=file:runs") == (
        'tracking.uri: "file:runs" is no MLflow tracking URI. Use sqlite:///FILE.db or http://HOST:PORT.'
    )


def test_more_workers_than_cpus(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "scaling.workers=5") == (
        "scaling.workers: 5 workers × 1 CPUs need 5, there are 4. "
        "Set scaling.workers to 4 or less, or connect to a larger cluster."
    )
    assert refusal("compare", "--set", "scaling.gpus_per_worker=64", "--set", "scaling.workers=4").startswith(
        "scaling.gpus_per_worker: 4 workers × 64 GPUs need 256, there are "
    )


def test_a_batch_that_workers_cannot_share(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "scaling.workers=3") == (
        "training.batch_size: a batch of 8 cannot be shared equally by 3 workers. Make it a multiple of 3."
    )


def test_a_batch_larger_than_the_examples(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "training.batch_size=33") == (
        "training.batch_size: a batch of 33 is more than the 32 training examples. Lower it to 32 or less."
    )
    assert refusal("train", "--set", "recipes.1.training.batch_size=64") == (
        "training.batch_size: a batch of 64 is more than the 32 training examples. Lower it to 32 or less."
    )


def test_a_pool_smaller_than_the_relevant_documents(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "collection.validation_pool=7") == (
        "collection.validation_pool: a validation pool of 7 documents cannot hold the 8 relevant ones. "
        "Make it 8 at least, or search all documents."
    )


def test_more_negatives_than_documents(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "negatives.per_query=60").startswith("negatives.per_query: ")


# The encoder


def test_a_model_that_is_none(refusal: Refusal, tmp_path: Path, tiny_model: Path) -> None:
    assert refusal("compare", "--set", "encoder.model=./nowhere").startswith(
        'encoder.model: "./nowhere" is no model: neither a folder nor a hub id (owner/name). Give a folder with '
    )
    assert refusal("compare", "--set", "encoder.model=collection").startswith(
        'encoder.model: "collection" is no model: it has no config.json. '
    )
    shutil.copytree(tiny_model, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "encoder.model: " in refusal("compare", "--set", "encoder.model=torn")
    shutil.copytree(tiny_model, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "no such type"}')
    assert "encoder.model: " in refusal("compare", "--set", "encoder.model=other")


def test_layers_beyond_the_model(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "encoder.layers=[0, 2]") == (
        "encoder.layers: layer 2 of an encoder with 2. Give layers from 0 to 1."
    )


def test_texts_longer_than_the_model_takes(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "encoder.document_tokens=33") == (
        "encoder.document_tokens: 33 tokens are more than the 32 that this encoder takes. Lower it to 32 or less."
    )


# The collection


def test_no_collection(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "collection.path=gone").startswith("gone: no such folder. There are: ")


def test_a_line_that_is_not_json(refusal: Refusal) -> None:
    replace_line(Path("collection/corpus.jsonl"), 3, '{"_id": "d2", "text": ')
    assert refusal("compare") == (
        "collection/corpus.jsonl:3: not a line of JSON: Expecting value at column 23. Mend the line."
    )


def test_a_judgment_of_what_is_not_there(refusal: Refusal) -> None:
    replace_line(Path("collection/qrels/train.tsv"), 5, "q3\td99\t1")
    assert refusal("compare") == (
        'collection/qrels/train.tsv:5: document "d99" is not in corpus.jsonl (60 documents). '
        "Mend the id, remove the line, or set collection.skip_dangling to true."
    )
    replace_line(Path("collection/qrels/train.tsv"), 5, "q99\td3\t1")
    assert refusal("compare") == (
        'collection/qrels/train.tsv:5: query "q99" is not in queries.jsonl (50 queries). '
        "Mend the id, remove the line, or set collection.skip_dangling to true."
    )


def test_an_id_that_is_there_twice(refusal: Refusal) -> None:
    replace_line(Path("collection/queries.jsonl"), 4, json.dumps({"_id": "q0", "text": "again"}))
    assert refusal("compare") == (
        'collection/queries.jsonl:4: id "q0" is there twice, first in line 1. Remove or rename one of them.'
    )


def test_an_empty_split(refusal: Refusal) -> None:
    Path("collection/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    assert refusal("compare") == (
        "collection/qrels/test.tsv: the split has no judgments. Add some, or remove the file."
    )


def test_a_split_that_is_not_there(refusal: Refusal) -> None:
    assert refusal("compare", "--set", "collection.test_split=dev") == (
        'collection.test_split: the collection has no split "dev". It has: test, train.'
    )


def test_a_test_split_without_a_relevant_document(refusal: Refusal) -> None:
    Path("collection/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq40\td3\t0\n")
    assert refusal("compare") == (
        'collection.test_split: no query of "test" has a relevant document. Name a split with judgments above 0.'
    )


# The store


def test_a_store_that_is_a_file(refusal: Refusal) -> None:
    Path("file").write_text("")
    for verb in ("compare", "prepare", "plan"):
        assert refusal(verb, "--set", "store=file") == (
            f"store: {Path.cwd()}/file is no folder that can be written: File exists. Name another."
        )


def test_a_store_that_cannot_be_written(refusal: Refusal) -> None:
    # Not even root makes a folder in /proc.
    assert refusal("compare", "--set", "store=/proc/stillhouse") == (
        "store: /proc/stillhouse is no folder that can be written: No such file or directory. Name another."
    )


def test_a_damaged_file_of_the_store(refusal: Refusal, experiment: Path) -> None:
    folder = Workspace(load(experiment)).tokens.documents.folder
    shard = folder / "part-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    line = refusal("compare")
    assert line.startswith(f"{shard}: this file of a finished stage has ")
    assert line.endswith(f"bytes, {shard.stat().st_size + 1:,} were written. Delete the folder {folder} and run again.")


# Verbs that read a finished comparison


def test_nothing_to_report_or_export(refusal: Refusal, tmp_path: Path) -> None:
    assert refusal("report") == (
        f'"tiny" has no finished comparison in {tmp_path}/store. Run: stillhouse compare tiny.yaml'
    )
    assert refusal("export", "arm-adaptive", "out") == (
        '"tiny" has no finished comparison. Run: stillhouse compare tiny.yaml'
    )
