"""The teacher's answers: equal to what its model says of each text and pair, made once, by whoever reads the store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flow
import torch
import transformers
from tiny_flow import THINGS

from data import UserError, pair_scores
from data.pair_scores import PairScores
from data.store import manifest
from orchestrator import checks, pair_scoring, shards
from orchestrator.config import load
from orchestrator.encoder import load_encoder, save_encoder
from orchestrator.journal import JOURNAL
from orchestrator.pair_scoring import ScoreShard
from orchestrator.runs import RunSpec, runs_of
from orchestrator.trial import read_trial, run_trial
from orchestrator.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_cpu")

TEACHERS = {
    "encoder": "{{encoder: {{model: {model}, query_tokens: 16, document_tokens: 24}}}}",
    "cross": "{{cross_encoder: {{model: {cross}, query_tokens: 12, document_tokens: 14}}}}",
    "file": "{{scores: {{path: {scores}, space: logit}}}}",
}


Make = Callable[..., Workspace]


@pytest.fixture
def taught(tmp_path: Path, tiny_collection: Path, tiny_model: Path, tiny_cross_encoder: Path) -> Make:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)
    places = {"model": tiny_model, "cross": tiny_cross_encoder, "scores": tmp_path / "scores.jsonl"}

    def make(teacher: str | None, recipes: str, *settings: str) -> Workspace:
        named = [f"teacher={TEACHERS.get(teacher, teacher).format(**places)}"] if teacher else []
        return Workspace(load(path, [*named, f"recipes={recipes}", "negatives.per_query=2", *settings]))

    return make


def run_of(workspace: Workspace, row: int = 0) -> RunSpec:
    return runs_of(workspace.experiment, workspace.experiment.recipes[row])[0]


def signals(workspace: Workspace, row: int = 0, step: int = 0) -> Any:
    run = run_of(workspace, row)
    assert workspace.teaching is not None
    say = workspace.teaching.signals(run)
    assert say is not None
    batch = workspace.plan(run.training).batch(step)
    return batch, say(batch)


def logits_of(cross: Path, workspace: Workspace, query: int, document: int) -> float:
    tokens = transformers.AutoTokenizer.from_pretrained(cross)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(cross).eval()
    texts = workspace.collection
    pair = texts.queries["text"][query].as_py(), texts.documents["text"][document].as_py()
    with torch.no_grad():
        return float(model(**tokens(*pair, return_tensors="pt")).logits)


def test_a_bi_encoder_says_what_its_vectors_say(taught: Make) -> None:
    workspace = taught("encoder", "[margin-mse, {recipe: score-kl, loss: {in_batch: true}}]")
    encoder, encoding = workspace.load_encoder(), workspace.encoding("fp32", None)
    for row, step in ((0, 0), (1, 3)):
        batch, said = signals(workspace, row, step)
        rows = np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
        q = encoding.embed(encoder, workspace.tokens.queries.take(batch.queries))
        d = encoding.embed(encoder, workspace.tokens.documents.take(rows.ravel())).view(8, 3, -1)
        torch.testing.assert_close(said.queries, q, atol=1e-6, rtol=0)
        torch.testing.assert_close(said.documents, d, atol=1e-6, rtol=0)
        if row == 0:
            torch.testing.assert_close(said.scores, torch.einsum("bd,bcd->bc", q, d), atol=1e-5, rtol=0)
    assert said.space == "cosine"


def test_only_what_is_asked_for_is_encoded(taught: Make) -> None:
    workspace = taught("encoder", "[{recipe: embedding-matching, loss: {side: query}}]")
    assert workspace.teaching is not None
    assert list(workspace.teaching.folders) == ["teacher_queries"]
    assert [cost.examples for cost in workspace.teaching.costs.values()] == [
        32
    ]  # the training queries, none of the validation's
    _, said = signals(workspace)
    assert (said.scores, said.documents) == (None, None)
    assert workspace.teaching.in_words.startswith("vectors of the training queries, /")


@pytest.mark.parametrize("recipe", ["margin-mse", "{recipe: score-kl, loss: {in_batch: true}}", "embedding-matching"])
def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(taught: Make, recipe: str) -> None:
    workspace = taught("encoder", f"[{recipe}]", "training.warmup=0.9", "training.learning_rate=1e-12")
    run, points = run_of(workspace), []
    if run.loss == "score-kl":
        run = RunSpec(**{**vars(run), "parameters": {"temperature": 0.05, "in_batch": True}})
    assert workspace.teaching is not None
    workspace.teaching.make()
    run_trial(workspace, run, points.append)
    trial = read_trial(workspace.trial(run), run)
    assert len(trial.curve) == 8
    assert max(point.loss for point in trial.curve) < 1e-5


def test_a_cross_encoder_says_what_it_says_of_each_pair(taught: Make, tiny_cross_encoder: Path) -> None:
    other = "{recipe: margin-mse, name: other, training: {batch_size: 4, epochs: 1}}"
    once = "{recipe: margin-mse, name: once, training: {examples: queries}}"
    workspace = taught("cross", f"[margin-mse, {once}, {other}, arm-adaptive]", "encoder.normalize=false")
    for row, steps in ((0, 8), (1, 8), (2, 8)):
        for step in range(steps):  # every batch of either row is served
            batch, said = signals(workspace, row, step)
    assert (said.scores.shape, said.queries, said.space) == ((4, 3), None, "logit")
    documents = np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
    for query, rows, scores in zip(batch.queries.tolist(), documents.tolist(), said.scores.tolist(), strict=True):
        expected = [logits_of(tiny_cross_encoder, workspace, query, row) for row in rows]
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert workspace.teaching is not None
    (cost,) = workspace.teaching.costs.values()
    assert cost.examples == len(workspace.teaching.pairs)
    assert cost.flops > 0


def test_pairs_that_another_experiment_has_scored_are_not_scored_again(
    taught: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    plain = ScoreShard.__call__

    def counting(self: ScoreShard, shard: Any) -> Any:
        made = plain(self, shard)
        scored.append(len(made))
        return made

    monkeypatch.setattr(ScoreShard, "__call__", counting)
    first = taught("cross", "[margin-mse]", "encoder.normalize=false").teaching
    again = taught("cross", "[margin-mse]", "encoder.normalize=false", "training.epochs=4").teaching
    assert first is not None
    assert again is not None
    before = PairScores(first.folders["teacher_scores"])
    assert scored == [len(first.pairs)]
    after = PairScores(again.folders["teacher_scores"])
    fresh = np.setdiff1d(again.pairs, first.pairs)
    assert 0 < len(fresh) < len(again.pairs)
    assert scored == [len(first.pairs), len(fresh)]
    shared = np.intersect1d(first.pairs, again.pairs)
    assert after.take(shared).tolist() == before.take(shared).tolist()
    (cost,), (cost_before,) = again.costs.values(), first.costs.values()
    assert cost.examples == len(again.pairs)
    share = len(shared) / len(first.pairs)
    assert cost.device_seconds > cost_before.device_seconds * share
    # In another store everything is new, and says the same.
    other = f"store={tmp_path}/other"
    alone = taught("cross", "[margin-mse]", "encoder.normalize=false", "training.epochs=4", other).teaching
    assert alone is not None
    whole = PairScores(alone.folders["teacher_scores"])
    np.testing.assert_allclose(whole.take(again.pairs), after.take(again.pairs), atol=1e-5)


def test_a_killed_teacher_goes_on_at_the_next_shard(taught: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_scoring, "SHARD_PAIRS", 32)
    made: list[int] = []
    plain, alive = ScoreShard.__call__, [2]

    def failing(self: ScoreShard, shard: Any) -> Any:
        if not alive[0]:
            raise KeyboardInterrupt
        alive[0] -= 1
        made.append(shard.number)
        return plain(self, shard)

    monkeypatch.setattr(ScoreShard, "__call__", failing)
    killed = taught("cross", "[margin-mse]", "encoder.normalize=false").teaching
    assert killed is not None
    with pytest.raises(KeyboardInterrupt):
        killed.make()
    alive[0] = 1000
    folder = taught("cross", "[margin-mse]", "encoder.normalize=false").teaching.folders["teacher_scores"]
    assert made == list(range(len(made)))
    assert len(made) > 3
    assert sorted(manifest(folder)["files"]) == ["cost.json", "scores.arrow"]
    monkeypatch.setattr(ScoreShard, "__call__", plain)
    other = taught("cross", "[margin-mse]", "encoder.normalize=false", f"store={folder.parents[1]}-2").teaching
    whole = PairScores(other.folders["teacher_scores"])
    assert PairScores(folder).take(killed.pairs).tolist() == whole.take(killed.pairs).tolist()


@pytest.mark.parametrize("deadly", ["write_scores", "total", "rmtree"])
def test_killed_when_all_is_scored_nothing_is_scored_again(
    taught: Make, deadly: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    killed = taught("cross", "[margin-mse]", "encoder.normalize=false").teaching
    assert killed is not None
    module = {"write_scores": pair_scores, "total": shards, "rmtree": shutil}[deadly]
    plain = getattr(module, deadly)
    with monkeypatch.context() as patch:
        # What clears a draft away before the work begins is let through.
        patch.setattr(module, deadly, lambda *a, **k: plain(*a, **k) if "draft" in str(a[0]) else kill())
        with pytest.raises(KeyboardInterrupt):
            killed.make()
    monkeypatch.setattr(ScoreShard, "__call__", kill)
    folder = taught("cross", "[margin-mse]", "encoder.normalize=false").teaching.folders["teacher_scores"]
    assert len(PairScores(folder)) == len(killed.pairs)
    assert sorted(manifest(folder)["files"]) == ["cost.json", "scores.arrow"]


def test_a_worker_reads_the_store_and_nothing_else(
    taught: Make, tmp_path: Path, tiny_model: Path, tiny_cross_encoder: Path
) -> None:
    for kind, model in (("encoder", tiny_model), ("cross", tiny_cross_encoder)):
        here = tmp_path / kind
        shutil.copytree(model, here)
        key = "encoder" if kind == "encoder" else "cross_encoder"
        teacher = f"{{{{{key}: {{{{model: {here}, query_tokens: 12, document_tokens: 14}}}}}}}}"
        workspace = taught(teacher, "[margin-mse]", "encoder.normalize=false", f"store={tmp_path / kind}-store")
        opened, run = workspace.opened, run_of(workspace)
        hash(opened)  # a worker keeps workspaces by it
        shutil.rmtree(here)
        there = Workspace.of(opened)
        for step in (0, 5):
            said = [signals(each, 0, step)[1].scores for each in (workspace, there)]
            torch.testing.assert_close(*said, atol=0, rtol=0)
        assert there.trial(run).fingerprint == workspace.trial(run).fingerprint


def test_scores_that_others_made(taught: Make, tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text('{"query_id": "q0", "scores": {"d0": 1}}\n')
    workspace = taught("file", "[{recipe: score-kl, loss: {temperature: 1, teacher_temperature: 2}}]")
    with pytest.raises(UserError, match=r"scores\.jsonl: \d+ of the \d+ pairs that training meets have no score"):
        workspace.teaching.make()
    every = {f"d{row}": row / 10 for row in range(tiny_flow.DOCUMENTS)}
    lines = [{"query_id": f"q{row}", "scores": {id_: score + row for id_, score in every.items()}} for row in range(50)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    workspace = taught("file", "[{recipe: score-kl, loss: {temperature: 1, teacher_temperature: 2}}]")
    batch, said = signals(workspace)
    ids = workspace.collection.queries["query_id"].to_pylist()
    names = workspace.collection.document_ids
    rows = np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
    expected = [
        [int(names[row][1:]) / 10 + int(ids[query][1:]) for row in of]
        for query, of in zip(batch.queries.tolist(), rows.tolist(), strict=True)
    ]
    np.testing.assert_allclose(said.scores, expected, rtol=1e-6)
    assert workspace.teaching.costs == {}


def test_scores_that_came_with_the_collection(taught: Make, tmp_path: Path) -> None:
    rows = [
        {"query": f"askba {THINGS[i]}", "positive": THINGS[i], "negative": THINGS[i + 1], "scores": [i + 2.0, i / 2]}
        for i in range(20)
    ]
    for split, part in (("train", rows[:16]), ("test", rows[16:])):
        (tmp_path / "scored").mkdir(exist_ok=True)
        (tmp_path / "scored" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    settings = (
        f"collection={{format: huggingface, path: {tmp_path}/scored, validation: 0.25}}",
        "training.batch_size=4",
        "negatives={source: given}",
        "encoder.normalize=false",
    )
    workspace = taught("{{scores: {{space: dot}}}}", "[margin-mse]", *settings)
    checks.encoders(workspace)
    batch, said = signals(workspace)
    ids = workspace.collection.queries["text"].to_pylist()
    for query, scores in zip(batch.queries.tolist(), said.scores.tolist(), strict=True):
        number = THINGS.index(ids[query].split()[1])
        assert scores == [number + 2.0, number / 2]
    assert workspace.teaching.costs == {}
    assert workspace.teaching.in_words == f"scores of the pairs that training meets, {tmp_path}/scored (dot)"
    run = run_of(workspace)
    run_trial(workspace, run, lambda point: None)
    assert Workspace.of(workspace.opened).trial(run).done
    random = taught("{{scores: {{space: dot}}}}", "[margin-mse]", *settings[:2], "encoder.normalize=false")
    with pytest.raises(UserError, match=r"^teacher.scores: \d+ of the \d+ pairs that training meets have no score"):
        random.teaching.make()
    with pytest.raises(UserError, match=r"^teacher.scores: the collection has no scores. Add the path of a file"):
        checks.encoders(taught("{{scores: {{space: dot}}}}", "[margin-mse]", "encoder.normalize=false"))


def test_a_run_is_named_by_its_teacher_where_it_has_one(taught: Make) -> None:
    recipes = "[margin-mse, arm-adaptive]"
    fingerprints = [
        [workspace.trial(run_of(workspace, row)).fingerprint for row in (0, 1)]
        for workspace in (
            taught("encoder", recipes, "encoder.normalize=false"),
            taught("cross", recipes, "encoder.normalize=false"),
        )
    ]
    assert fingerprints[0][0] != fingerprints[1][0]
    assert fingerprints[0][1] == fingerprints[1][1]
    alone = taught(None, "[arm-adaptive]", "encoder.normalize=false")
    assert alone.trial(run_of(alone)).fingerprint == fingerprints[0][1]
    assert taught("encoder", "[arm-adaptive]").teaching is None  # nobody learns from it


@pytest.mark.parametrize(
    ("teacher", "recipe", "settings", "message"),
    [
        (
            "{{cross_encoder: {{model: {cross}, query_tokens: 16, document_tokens: 24}}}}",
            "score-kl",
            ("recipes.0={recipe: score-kl, loss: {temperature: 1}}",),
            "teacher.cross_encoder.document_tokens: a pair has up to 39 tokens, more than the 32 that this "
            "cross-encoder takes. Lower it to 17 or less.",
        ),
        (
            "{{cross_encoder: {{model: {model}}}}}",
            "score-kl",
            ("recipes.0={recipe: score-kl, loss: {temperature: 1}}",),
            "teacher.cross_encoder.model: ",
        ),
        (
            "{{encoder: {{model: {model}, query_tokens: 16, document_tokens: 99}}}}",
            "margin-mse",
            (),
            "teacher.encoder.document_tokens: 99 tokens are more than the 32 that this encoder takes.",
        ),
        ("{{encoder: {{model: nowhere}}}}", "margin-mse", (), 'teacher.encoder.model: "nowhere" is no model'),
        ("file", "{recipe: score-kl, loss: {temperature: 1}}", (), "teacher.scores.path: "),
    ],
)
def test_teachers_that_are_refused(taught: Make, teacher: str, recipe: str, settings: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        checks.encoders(taught(teacher, f"[{recipe}]", *settings))
    assert str(refused.value).startswith(message)


def test_the_scores_of_several_teachers_are_averaged(
    taught: Make, tmp_path: Path, tiny_model: Path, tiny_cross_encoder: Path
) -> None:
    cross = f"{{{{cross_encoder: {{{{model: {tiny_cross_encoder}, query_tokens: 12, document_tokens: 14}}}}}}}}"
    scores = tmp_path / "scores.jsonl"
    one = taught(cross, "[score-kl]")
    _, said = signals(one)
    pairs = PairScores(one.teaching.folders["teacher_scores"])
    ids = [one.collection.queries["query_id"].to_pylist(), one.collection.documents["doc_id"].to_pylist()]
    with scores.open("w") as file:
        for pair in pairs.pairs.tolist():
            query, document = divmod(pair, one.collection.documents.num_rows)
            line = {"query_id": ids[0][query], "doc_id": ids[1][document], "score": query - document / 7}
            file.write(json.dumps(line) + "\n")
    file_of = f"{{{{scores: {{{{path: {scores}, space: logit}}}}}}}}"
    both = taught(f"{{{{average: [{cross}, {file_of}]}}}}", "[score-kl]")
    checks.encoders(both)
    batch, averaged = signals(both)
    rows = np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
    expected = (said.scores + torch.from_numpy(batch.queries[:, None] - rows / 7)) / 2
    torch.testing.assert_close(averaged.scores, expected.float(), atol=1e-5, rtol=1e-5)
    assert (averaged.queries, averaged.documents, averaged.space) == (None, None, "logit")
    run = run_of(both)
    worker = Workspace.of(both.opened)
    torch.testing.assert_close(worker.teaching.signals(run)(batch).scores, averaged.scores)
    run_trial(worker, run, lambda point: None)
    assert both.trial(run).done
    assert both.trial(run).fingerprint != one.trial(run).fingerprint
    assert sum(cost.examples for cost in both.teaching.costs.values()) == len(pairs.pairs)
    assert both.teaching.in_words.startswith("the mean of scores of the pairs that training meets, ")
    assert [stage.done for stage in both.teaching.stages] == [True, True]


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ("[{encoder}, {cross}]", "teacher.average.1: its scores are logit and the first's cosine, which have no mean"),
        ("[{cross}]", "teacher.average: must be two teachers or more"),
        (
            "[{cross}, {{{{row: score-kl}}}}]",
            "must be two teachers or more, each an encoder, a cross_encoder or scores",
        ),
    ],
)
def test_teachers_that_have_no_mean_are_refused(taught: Make, teachers: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        checks.encoders(taught(f"{{{{average: {teachers.format(**TEACHERS)}}}}}", "[score-kl]"))
    assert message in str(refused.value)


def test_scores_that_a_model_has_by_its_own_files_are_checked_once_it_is_read(
    taught: Make, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dot"
    encoder = load_encoder(tiny_model, pooling="mean", normalize=False)
    save_encoder(encoder, folder, tokenizer=tiny_model, max_tokens=24)
    dot = f"encoder: {{{{model: {folder}, query_tokens: 16, document_tokens: 24}}}}"
    cosine = dot.replace(str(folder), str(tiny_model))
    for teacher, kind in (("cross", "logit"), (f"{{{{{dot}}}}}", "dot")):
        with pytest.raises(UserError) as refused:
            checks.encoders(taught(teacher, "[margin-mse]"))
        assert str(refused.value) == (
            "recipes.0: margin-mse regresses a student's margins of cosines, at most 2 wide, on a teacher's margins in "
            f"{kind} scores. Set encoder.normalize to false, or take another teacher or recipe, such as score-kl."
        )
        checks.encoders(taught(teacher, "[margin-mse]", f"encoder.model={folder}"))
    checks.encoders(taught(f"{{{{{cosine}}}}}", "[margin-mse]"))
    with pytest.raises(UserError) as refused:
        checks.encoders(taught(f"{{{{average: [{{{{{cosine}}}}}, {{{{{dot}}}}}]}}}}", "[score-kl]"))
    assert str(refused.value).startswith("teacher.average.1: its scores are dot and the first's cosine, which have no")
    both = taught(f"{{{{average: [{{{{{dot}}}}}, {{{{{dot}}}}}]}}}}", "[score-kl]")
    both.teaching.make()
    run, worker = run_of(both), Workspace.of(both.opened)
    batch, said = signals(both)
    told = worker.teaching.signals(run)(batch)
    assert (said.space, told.space) == ("dot", "dot")
    torch.testing.assert_close(told.scores, said.scores)


def test_the_journal_has_what_the_loss_says_of_the_teacher(taught: Make) -> None:
    workspace = taught("encoder", "[margin-mse]")
    workspace.teaching.make()
    run = run_of(workspace)
    run_trial(workspace, run, lambda point: None)
    lines = (workspace.trial(run).path / JOURNAL).read_text().splitlines()
    misaligned = {"query_misalignment", "document_misalignment"}
    assert {"margin", "target", "agreement"} | misaligned == set(json.loads(lines[-1])["point"]["diagnostics"])


@pytest.mark.parametrize("order", [("whole", "half"), ("half", "whole")])
def test_rows_that_take_shares_of_the_queries_meet_pairs_of_their_own(taught: Make, order: tuple[str, str]) -> None:
    shares = {"whole": 1.0, "half": 0.5}
    rows = [f"{{recipe: score-kl, name: {name}, training: {{share: {shares[name]}}}}}" for name in order]
    workspace = taught("cross", f"[{', '.join(rows)}]")
    for row in (0, 1):
        for step in range(workspace.plan(run_of(workspace, row).training).total_steps):
            batch, said = signals(workspace, row, step)  # a pair without a score is a KeyError
            assert said.scores.shape == (len(batch.queries), 3)
