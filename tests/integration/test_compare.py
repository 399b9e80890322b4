"""One comparison from an empty store, and what it leaves: the table, the report, the run files, the encoders, MLflow.

Pins: the table is what ir_measures says of the run files; MLflow has each value once; a second run starts nothing and
changes nothing; a store does not care where it lies; a lost MLflow gets everything later.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_flow
from flow import ROOT, Ended, Flow
from in_mlflow import MEASURES, ROWS, TRIALS, check_mlflow, runs_in

from orchestrator import cli
from orchestrator.config import load
from orchestrator.embeddings import VectorSet
from orchestrator.runs import runs_of
from orchestrator.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_what_a_person_sees(compared: tuple[Flow, Ended]) -> None:
    flow, ended = compared
    assert ended.status == 0, ended.errors
    assert "Traceback" not in ended.errors
    assert "60 documents, 32 training, 8 validation and 10 test queries" in ended.errors
    lines = [re.sub(r"^ *[a-z] +", "", line) for line in reversed(ended.output.splitlines())]
    table = {row: line for line in lines for row in ROWS if line.startswith(f"{row} ")}
    assert sorted(table) == sorted(ROWS)
    for row, line in table.items():
        assert all(f"{flow.measures[row][measure]:.4f}" in line for measure in MEASURES), line
    assert "target 0.3" in table["static-margin"]
    assert re.search(r" 2 \(1\) ", table["static-margin"])  # two trials, one ended early
    assert "report  store/reports/tiny/report.html" in ended.output
    assert f"--backend-store-uri sqlite:///{flow.folder}/mlflow.db" in ended.output


def test_the_report(compared: tuple[Flow, Ended]) -> None:
    flow, _ = compared
    folder = flow.store / "reports" / "tiny"
    assert {file.name for file in folder.iterdir()} == {
        "comparison.json", "experiment.yaml", "report.html", "report.md", "report.tex"
    }  # fmt: skip
    for name in ("report.html", "report.md", "report.tex"):
        text = (folder / name).read_text()
        assert all(row in text for row in ROWS)
        assert f"{flow.measures['arm-adaptive']['nDCG@10']:.4f}" in text
    comparison = flow.comparison
    assert [result["name"] for result in comparison["results"]] == ROWS
    assert {r["name"]: [trial["name"] for trial in r["trials"]] for r in comparison["results"][1:]} == TRIALS
    assert [*comparison["peak_flops"]] == ["cpu fp32"]
    made = [cost for cost in comparison["costs"] if cost["flops"]]
    assert {cost["stage"] for cost in made} == {"training", "validation", "evaluation"}
    assert all(cost["precision"] == "fp32" and cost["peak_bytes"] > 5e7 for cost in made)
    assert "peak memory, GB" in (folder / "report.html").read_text()
    states = [trial["state"] for trial in comparison["results"][1]["trials"]]
    assert states == ["finished", "stopped"]
    assert [(result["share"], result["family"]) for result in comparison["results"]] == [(1.0, "")] * len(ROWS)
    assert [[step for step, _, _ in curve] for curve in flow.curves.values()] == [
        [*range(1, 9)], [*range(1, 5)], [*range(1, 9)]
    ]  # fmt: skip


def test_the_queries_that_differ_most_are_shown_with_their_texts(compared: tuple[Flow, Ended]) -> None:
    flow, _ = compared
    tuned, free = (r["per_query"]["nDCG@10"] for r in flow.comparison["results"] if r["name"] in TRIALS)
    wins, losses = (sum(sign * (free[query] - tuned[query]) > 1e-9 for query in free) for sign in (1, -1))
    shown = flow.comparison["query_texts"]
    assert len(shown) == min(wins, 5) + min(losses, 5) > 0
    collection = Path(load(flow.folder / "tiny.yaml").collection.path)
    lines = (collection / "queries.jsonl").read_text().splitlines()
    texts = {query["_id"]: query["text"] for query in map(json.loads, lines)}
    assert shown == {query: texts[query] for query in shown}
    page = (flow.store / "reports" / "tiny" / "report.html").read_text()
    assert all(text in page for text in shown.values())


def test_differences_are_tested(compared: tuple[Flow, Ended]) -> None:
    flow, ended = compared
    per_query = {result["name"]: result["per_query"]["nDCG@10"] for result in flow.comparison["results"]}
    differences = flow.comparison["differences"]
    pairs = {(each["row"], each["other"]): each for each in differences}
    assert len(pairs) == len(differences) == len(ROWS) * (len(ROWS) - 1) // 2
    for (row, other), each in pairs.items():
        assert each["queries"] == len(per_query[row]) == 10
        mean = sum(per_query[row][query] - per_query[other][query] for query in per_query[row]) / 10
        assert each["mean"] == pytest.approx(mean)
    assert "Letters behind nDCG@10 name the rows that a row is better than" in ended.output


def test_training_helps(compared: tuple[Flow, Ended]) -> None:
    measures = compared[0].measures
    assert measures["static-margin"]["nDCG@10"] > measures["untrained"]["nDCG@10"] + 0.1
    assert measures["arm-adaptive"]["nDCG@10"] > measures["untrained"]["nDCG@10"] + 0.1


def test_the_table_is_what_the_run_files_say(compared: tuple[Flow, Ended]) -> None:
    import ir_measures

    flow, _ = compared
    lines = (flow.folder / "tiny.yaml").read_text()
    collection = Path(re.search(r"path: ([^,]+),", lines)[1])  # type: ignore[index]
    judged = [line.split("\t") for line in (collection / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    qrels = [ir_measures.Qrel(query, document, int(score)) for query, document, score in judged]
    measures = [ir_measures.parse_measure(name) for name in MEASURES]
    seen = {}
    for file in (flow.store / "runs").glob("*/run.trec.gz"):
        content = gzip.decompress(file.read_bytes()).decode()
        (row,) = {line.split()[5] for line in content.splitlines()}
        run = list(ir_measures.read_trec_run(content))
        expected = ir_measures.calc_aggregate(measures, qrels, run)
        assert flow.measures[row] == pytest.approx({str(measure): value for measure, value in expected.items()})
        kept = json.loads((file.parent / "per_query.json").read_text())
        values = {(str(m.measure), m.query_id): m.value for m in ir_measures.iter_calc(measures, qrels, run)}
        assert {(name, query): v for name, of in kept.items() for query, v in of.items()} == pytest.approx(values)
        (result,) = (result for result in flow.comparison["results"] if result["name"] == row)
        assert result["per_query"] == kept
        seen[row] = len(run)
    assert seen == dict.fromkeys(ROWS, tiny_flow.TEST_QUERIES * tiny_flow.DOCUMENTS)


def test_mlflow(compared: tuple[Flow, Ended]) -> None:
    check_mlflow(compared[0])


def test_run_again_nothing_is_computed_and_nothing_is_logged(compared: tuple[Flow, Ended]) -> None:
    flow, first = compared
    before, logged = flow.comparison, [run.to_dictionary() for run in runs_in(flow)[1]]
    again = flow.run("compare")
    assert again.status == 0, again.errors
    assert "starting Ray" not in again.errors
    assert "static-margin: 2 trial(s) reused" in again.errors
    assert again.output == first.output
    assert flow.comparison == before
    assert [run.to_dictionary() for run in runs_in(flow)[1]] == logged
    assert again.seconds < 30  # 5 where nothing else runs


def test_from_an_empty_store_without_mlflow_the_numbers_are_the_same(compared: tuple[Flow, Ended], fresh: Flow) -> None:
    ended = fresh.run("compare", "--set", "tracking.uri=http://127.0.0.1:1")
    assert ended.status == 0, ended.errors
    assert "Traceback" not in ended.errors
    assert ended.errors.count("cannot be reached") == 1
    assert "its values wait in the store" in ended.errors
    assert "could not be reached; run the same command again to send the values" in ended.output
    assert fresh.measures == compared[0].measures
    assert fresh.curves == compared[0].curves
    # Now that there is one:
    again = fresh.run("compare")
    assert again.status == 0, again.errors
    assert "starting Ray" not in again.errors
    check_mlflow(fresh)


# The command again; then the heavy packages that it has loaded, and how often it has read which file in full.
AGAIN = """
import hashlib, json, sys
from collections import Counter
from orchestrator.cli import main
read, digest = Counter(), hashlib.file_digest
def counted(file, kind):
    read[file.name] += 1
    return digest(file, kind)
hashlib.file_digest = counted
sys.argv = ["stillhouse", "compare", "tiny.yaml", "--json"]
try:
    main()
finally:
    heavy = ["faiss", "mlflow", "pandas", "ray", "transformers.models.bert.modeling_bert"]
    print(json.dumps({"loaded": [name for name in heavy if name in sys.modules], "read": read}), file=sys.stderr)
"""


def test_run_again_what_is_recognised_is_read_once(compared: tuple[Flow, Ended]) -> None:
    flow, _ = compared
    command, environment = [sys.executable, "-c", AGAIN], {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=flow.folder, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(ended.stderr.splitlines()[-1])
    assert told["loaded"] == []
    assert set(told["read"].values()) == {1}
    recognised = {Path(name).relative_to(flow.store).parts[0] for name in told["read"] if str(flow.store) in name}
    assert {"collection", "encoders", "encoder-checks", "tokens", "searches", "runs"} <= recognised


# The other verbs, on a copy of the finished store


@pytest.fixture
def stillhouse(finished: Flow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`stillhouse(…)`: run in this process, where Ray must not be asked for; gives what is printed."""
    monkeypatch.chdir(finished.folder)
    monkeypatch.setattr("orchestrator.cluster.connect", lambda: pytest.fail("asked for Ray with nothing to do"))

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["stillhouse", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        assert end.value.code == 0, output.err
        return output.out

    return run


def test_json(stillhouse: Any, finished: Flow, compared: tuple[Flow, Ended]) -> None:
    measures = json.loads(stillhouse("evaluate", "tiny.yaml", "--json"))
    assert measures == compared[0].measures
    comparison = json.loads(stillhouse("compare", "tiny.yaml", "--json"))
    assert comparison == finished.comparison
    assert comparison["results"][2]["measures"] == measures["arm-adaptive"]
    stages = json.loads(stillhouse("plan", "tiny.yaml", "--json"))
    assert [stage["stage"] for stage in stages if stage["state"] == "done"] == [
        "collection", "tokens of queries", "tokens of documents", "train static-margin", "train arm-adaptive"
    ]  # fmt: skip
    losses = json.loads(stillhouse("losses", "--json"))
    assert {"margin", "infonce", "triplet"} <= {loss["name"] for loss in losses}
    recipes = {recipe["name"]: recipe for recipe in json.loads(stillhouse("recipes", "--json"))}
    assert recipes["static-margin"]["knobs"]["target"]
    assert recipes["arm-adaptive"]["knobs"] == {}


def test_plan_of_what_is_not_done(stillhouse: Any) -> None:
    other = ["tiny.yaml", "--json", "--set", "training.epochs=3", "--set", "encoder.document_tokens=20"]
    stages = {stage["stage"]: stage for stage in json.loads(stillhouse("plan", *other))}
    assert {name: stage["state"] for name, stage in stages.items() if stage["state"]} == {
        "collection": "done", "tokens of queries": "done", "tokens of documents": "to do",
        "train static-margin": "to do", "train arm-adaptive": "to do",
    }  # fmt: skip
    assert stages["train static-margin"]["what"].startswith("2 trials of 12 steps at most")
    assert stages["train arm-adaptive"]["what"] == "1 trial of 12 steps"
    assert not list(Path("store").glob("*/*.partial/part*"))
    mined = json.loads(stillhouse("plan", "tiny.yaml", "--json", "--set", "negatives.source=mined"))
    assert [(stage["stage"], stage["state"]) for stage in mined][3] == ("mine negatives", "to do")
    assert mined[3]["what"].startswith("the first 60 of 60 documents, ")


def test_train_and_tune(stillhouse: Any, compared: tuple[Flow, Ended]) -> None:
    last = {trial: [score for *_, score in curve if score][-1] for trial, curve in compared[0].curves.items()}
    assert stillhouse("train", "tiny.yaml").splitlines() == [
        f"arm-adaptive  validation nDCG@10 {last['arm-adaptive']:.4f}  finished"
    ]
    assert stillhouse("tune", "tiny.yaml").splitlines() == [
        f"static-margin target=0.3  validation nDCG@10 {last['static-margin target=0.3']:.4f}  finished",
        f"static-margin target=1  validation nDCG@10 {last['static-margin target=1']:.4f}  stopped",
    ]


def test_report_and_other_measures(stillhouse: Any, finished: Flow, compared: tuple[Flow, Ended]) -> None:
    folder = finished.store / "reports" / "tiny"
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    table = stillhouse("report", "tiny.yaml")
    assert (folder / "report.html").read_text() == page
    assert table.splitlines()[1:5] == compared[1].output.splitlines()[1:5]
    # Another measure needs neither training nor encoding.
    measures = json.loads(stillhouse("evaluate", "tiny.yaml", "--json", "--set", "evaluation.measures=[RR@3]"))
    assert list(measures) == ROWS
    assert all(list(of) == ["RR@3"] for of in measures.values())


def test_export(stillhouse: Any, finished: Flow, tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    from sentence_transformers import SentenceTransformer

    stillhouse("compare", "tiny.yaml")  # tells the report where the store is now
    told = stillhouse("export", "tiny.yaml", "arm-adaptive", str(tmp_path / "out"))
    assert told == f"arm-adaptive → {tmp_path / 'out'}\n"
    workspace = Workspace(load("tiny.yaml"))
    texts = workspace.collection.documents["text"].to_pylist()
    vectors = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    # The same vectors as those that the evaluation searched.
    (run,) = runs_of(workspace.experiment, workspace.experiment.recipes[1])
    model = workspace.trained_model(run)
    stage = VectorSet(model, workspace.tokens.documents, "fp32").stage(workspace.store)
    table = pa.ipc.open_file(pa.memory_map(str(stage.path / "part-00000.arrow"))).read_all()
    assert np.allclose(vectors, np.array(table["vector"].to_pylist()), atol=1e-5)


def test_a_teacher_and_generated_queries_on_what_was_mined_and_checked(
    prepared: Flow, tiny_cross_encoder: Path
) -> None:
    model = f"model: {tiny_cross_encoder}, query_tokens: 12, document_tokens: 14"
    mined = f"{{source: mined, skip: 1, depth: 20, absolute_margin: 0.01, check: {{{model}}}}}"
    settings = (
        f"negatives={{per_query: 2, mix: [{mined}, {{source: random}}]}}",
        f"teacher={{cross_encoder: {{{model}}}}}",
        "generation={generator: inverse-cloze, round_trip: {depth: 20}}",
        "recipes=[margin-mse, {recipe: margin-mse, name: both, training: {queries: both}}]",
        "encoder.normalize=false",  # cosines could not take the margins of logits
    )
    ended = prepared.run("compare", *(word for setting in settings for word in ("--set", setting)))
    assert ended.status == 0, ended.errors
    assert "queries have fewer than 2 mined; random documents fill up" in ended.errors
    assert "margin-mse: 8 steps of 8 queries; negatives a query: 2 own" in ended.errors
    assert f"teacher: scores of the pairs that training meets, {tiny_cross_encoder} (logit)" in ended.errors
    assert "generation: sentences drawn at random, 1 a document at most, of 60 documents, kept if" in ended.errors
    kept = int(*re.findall(r"generated 60 queries from 60 documents, (\d+) kept", ended.errors))
    assert f"both: judged and generated queries, {(32 + kept) // 8 * 2} steps" in ended.errors
    assert "margin-mse and both learn from a teacher" in ended.output
    assert "both learns from generated queries beside the judged ones; the " in ended.output

    comparison = prepared.comparison
    assert comparison["generated_queries"] == kept
    assert [result["queries"] for result in comparison["results"]] == ["judged", "judged", "both"]
    per_query = [result["per_query"]["nDCG@10"] for result in comparison["results"]]
    assert all(not query.startswith("generated:") for each in per_query for query in each)
    costs = {stage: [c for c in comparison["costs"] if c["stage"] == stage] for stage in ("mining", "teaching")}
    # By stage of the store: the corpus once for both, then of each its queries, the search (0) and what was checked.
    mining = [(cost["examples"], cost["queries"]) for cost in costs["mining"]]
    assert mining[:3] == [(60, ["judged", "both"]), (32, ["judged"]), (0, ["judged"])]
    assert mining[4:6] == [(32 + kept, ["both"]), (0, ["both"])]
    assert 32 < mining[3][0] < mining[6][0]
    taught, more = (cost["examples"] for cost in costs["teaching"])
    # Each training query with its document, and with two negatives in each of two epochs, of which some are the same.
    assert 32 < taught <= 32 + 2 * 32 * 2 < more
    generated = [cost["queries"] for cost in comparison["costs"] if cost["stage"] == "generation"]
    assert generated == [["both"]] * 3  # the sentences, and the two sets of vectors of the round trip
    tags = [run.data.tags for run in runs_in(prepared)[1]]
    learned = {tag["mlflow.runName"]: tag["stillhouse.queries"] for tag in tags if "stillhouse.queries" in tag}
    assert learned == {"untrained": "judged", "margin-mse": "judged", "both": "both"}
    # The corpus was encoded once untrained, for mining, the round trip and the evaluation, and once for each trained.
    folders = (folder for folder in (prepared.store / "embeddings").iterdir() if folder.is_dir())
    assert len([len(list(folder.glob("part-*"))) for folder in folders]) == 3 + 3 + 3  # and the queries
