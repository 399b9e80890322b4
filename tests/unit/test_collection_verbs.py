"""Pins: what `prepare --inspect` prints of a collection, as a person and as a program reads it, and `convert`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_flow

from data import read_beir
from data.formats import FORMATS
from orchestrator import cli

Run = Callable[..., str]


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_collection: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """`run("prepare", "--inspect")`: what a verb of the tiny experiment prints."""
    monkeypatch.chdir(tmp_path)
    experiment = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)

    def of(verb: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["stillhouse", verb, experiment.name, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (None, 0)
        return capsys.readouterr().out

    return of


def test_inspect(run: Run) -> None:
    printed = run("prepare", "--inspect")
    texts, splits, *_ = printed.split("\n\n")
    assert [line.split() for line in texts.splitlines()[1:]] == [
        ["documents", "60", "9", "9", "9", "24", "0", "0", "0"],
        ["queries", "50", "7", "7", "7", "16", "0", "0", "0"],
    ]
    assert [line.split() for line in splits.splitlines()[1:]] == [
        ["test", "10", "10", "10", "1", "0"],
        ["train", "40", "40", "40", "1", "0"],
    ]
    assert printed.endswith("nothing that bites was found\n")


def test_inspect_as_json(run: Run) -> None:
    found = json.loads(run("prepare", "--inspect", "--json", "--set", "encoder.document_tokens=8"))
    assert found["documents"]["truncated"] == 60
    assert found["splits"]["train"]["relevant"] == 40
    assert found["warnings"] == ["60 of 60 documents (100.0%) are cut at 8 tokens"]
    assert len(found["sample"]) == 6


def test_convert(run: Run, tiny_collection: Path, tmp_path: Path) -> None:
    printed = run("convert", "parquet", "mine")
    assert printed == f"{tiny_collection} → mine\n"
    assert FORMATS["parquet"].read("mine", ()).fingerprint == read_beir(tiny_collection).fingerprint


def test_mine_saves_what_negatives_are_drawn_from(run: Run, tiny_collection: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    settings = "negatives={per_query: 2, mix: [{source: bm25, depth: 5}, {source: random}]}"
    printed = run("mine", "--set", settings, "--save", str(tmp_path / "out" / "negatives.parquet"))
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "negatives.parquet").to_pylist()
    assert printed == f"{len(rows):,} negatives → {tmp_path / 'out' / 'negatives.parquet'}\n"
    judged = [line.split("\t")[:2] for line in (tiny_collection / "qrels" / "train.tsv").read_text().splitlines()[1:]]
    assert len({row["query_id"] for row in rows}) == 32  # of the training part
    assert not [row for row in rows if [row["query_id"], row["doc_id"]] in judged]
    assert {(row["source"], row["rank"] in range(1, 6), row["score"]) for row in rows} == {("bm25", True, None)}


def test_there_is_nothing_to_save_of_random_negatives(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["stillhouse", "mine", "tiny.yaml", "--save", "negatives.parquet"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "negatives.source: random negatives are drawn from the whole corpus: there is nothing to save. "
        "Set it to bm25, mined, given or file."
    )
    assert not (tmp_path / "negatives.parquet").exists()


GENERATION = ("--set", "generation={generator: inverse-cloze, documents: 20, round_trip: {depth: 30}}")


def test_generate(run: Run, tiny_collection: Path, tmp_path: Path) -> None:
    printed = run("generate", *GENERATION, "--save", "mine").splitlines()
    assert len(printed) == 6
    documents = dict(
        zip(*(read_beir(tiny_collection).documents[name].to_pylist() for name in ("doc_id", "text")), strict=True)
    )
    for line in printed[:5]:
        document, text = line.split("  ")
        assert text in documents[document]
    told = json.loads((tmp_path / "mine" / "generated.json").read_text())
    assert printed[5] == f"{told['counts']['kept']} generated queries → mine"
    assert told["counts"]["documents"] == told["counts"]["written"] == 20
    assert {key: told[key] for key in ("generator", "documents", "seed")} == {
        "generator": "inverse-cloze", "documents": 20, "seed": 13,
    }  # fmt: skip
    saved, asked = read_beir(tmp_path / "mine"), read_beir(tiny_collection)
    count = told["counts"]["kept"]
    assert saved.generated.sum() == len(saved.qrels["train"]) == count > 5
    assert saved.generated[saved.qrels["train"].query_row].all()
    assert saved.documents.equals(asked.documents)
    tests = (
        {
            (each.queries["text"][query].as_py(), each.documents["doc_id"][document].as_py())
            for query, document in zip(
                each.qrels["test"].query_row.tolist(), each.qrels["test"].doc_row.tolist(), strict=True
            )
        }
        for each in (saved, asked)
    )
    assert len({frozenset(pairs) for pairs in tests}) == 1
    # Read as a collection of its own, it says what it is.
    at = ("--set", "collection.path=mine", "--set", "recipes=[arm-adaptive]")
    warnings = json.loads(run("prepare", "--inspect", "--json", *at))["warnings"]
    assert warnings[:2] == [
        f"{count} of {count + 10} queries ({count / (count + 10):.1%}) are generated: nobody has asked them",
        f"{count} of {count} queries of train (100.0%) are generated",
    ]


def test_generate_refuses(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", *GENERATION, "--save", "mine")
    for arguments, message in (
        ((), 'generation: there is nothing that says how. Add a section such as "generation: {generator: salient}".'),
        ((*GENERATION, "--save", "mine"), "mine: it is there already. Choose another name."),
        ((*GENERATION, "--save", "new", "--format", "xml"), 'format: "xml" is not written. Formats: beir, trec, parq'),
    ):
        monkeypatch.setattr("sys.argv", ["stillhouse", "generate", "tiny.yaml", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_generate_without_judgments(run: Run, tiny_collection: Path, tmp_path: Path) -> None:
    """Nothing but a corpus and test queries: what is generated is what a second experiment trains and validates on."""
    folder = tmp_path / "unjudged"
    shutil.copytree(tiny_collection, folder)
    (folder / "qrels" / "train.tsv").unlink()
    run(
        "generate",
        "--set",
        "collection.path=unjudged",
        *GENERATION[:1],
        "generation={generator: title}",
        "--save",
        "own",
    )
    planned = json.loads(run("plan", "--set", "collection.path=own", "--set", "recipes=[arm-adaptive]", "--json"))
    assert planned[0]["what"] == "own: 60 documents, 46 training and 14 validation judgments, 60 of them generated"
