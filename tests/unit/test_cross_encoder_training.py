"""Cross-encoders trained on the judged queries: the gradient is that of transformers, the best weights teach, a kill
costs nothing, and students are drawn to the vectors of dual pooling.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flow
import torch
import torch.nn.functional as F
import transformers

from data import Qrels, UserError
from data.arrow import read_arrow
from orchestrator import checks, shards
from orchestrator.config import load
from orchestrator.cross_encoder import Scoring, load_cross_encoder
from orchestrator.cross_encoder_training import Candidates, CrossEncoderLearner
from orchestrator.group import Group
from orchestrator.journal import JOURNAL
from orchestrator.runs import runs_of
from orchestrator.teaching import Teaching
from orchestrator.trial import run_trial
from orchestrator.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_cpu")

TRAINING = "training: {batch_size: 8, epochs: 30, learning_rate: 2.0e-3, precision: fp32, validations: 3, warmup: 0.0}"
LENGTHS = "query_tokens: 12, document_tokens: 14"
TEACHER = "teacher={{cross_encoder: {{model: {model}, {lengths}, scorer: {scorer}, {more}}}}}"
Make = Callable[..., Workspace]


@pytest.fixture
def taught(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Make:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)

    def make(scorer: str, recipes: str = "[score-kl]", *settings: str, more: str = TRAINING) -> Workspace:
        teacher = TEACHER.format(model=tiny_model, lengths=LENGTHS, scorer=scorer, more=more)
        return Workspace(load(path, [teacher, f"recipes={recipes}", "negatives.per_query=2", *settings]))

    return make


def teaching(workspace: Workspace) -> Teaching:
    assert workspace.teaching is not None
    return workspace.teaching


def curve(workspace: Workspace) -> dict[str, list[float]]:
    (stage,) = teaching(workspace).scorer.stages
    (table,) = (read_arrow(path) for path in shards.files(stage.path))
    return table.to_pydict()


@pytest.mark.parametrize("activation_tokens", [1, 10_000])
@pytest.mark.parametrize("scorer", ["pooled", "dual"])
def test_the_gradient_is_that_of_transformers(taught: Make, scorer: str, activation_tokens: int) -> None:
    workspace = taught(scorer, more=f"normalize: false, {TRAINING[:-1]}, temperature: 3.0}}")
    settings = workspace.experiment.teacher.cross_encoder.training
    settings = settings.model_copy(update={"activation_tokens": activation_tokens})
    torch.manual_seed(0)
    model = load_cross_encoder(workspace.model.path, Scoring(scorer, False), new_head=True).train()
    plan, texts = workspace.plan(settings), teaching(workspace).scorer._judged_texts
    learner = CrossEncoderLearner(plan, texts.tokens, model, workspace.encoding("fp32", 100), settings)
    output, count = learner.learn(3, Group())
    gradient = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()

    batch, collection = plan.batch(3), workspace.collection
    tokenizer = transformers.AutoTokenizer.from_pretrained(workspace.model.path)
    rows = np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
    losses, tokens = [], 0
    for query, documents in zip(batch.queries.tolist(), rows.tolist(), strict=True):
        scores = []
        for document in documents:
            pair = collection.queries["text"][query].as_py(), collection.documents["text"][document].as_py()
            q, d = (
                tokenizer(text, truncation=True, max_length=longest)["input_ids"][1:-1]
                for text, longest in zip(pair, (12, 14), strict=True)
            )
            ids = torch.tensor([[2, *q, 3, *d, 3]])
            tokens += ids.shape[1]
            scores.append(model.scores(model(ids, torch.ones_like(ids)))[0])
        losses.append(-F.log_softmax(torch.stack(scores) / 3.0, dim=0)[0])
    torch.testing.assert_close(output.per_example, torch.stack(losses).detach(), atol=1e-5, rtol=1e-5)
    assert float(output.loss) == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
    torch.stack(losses).mean().backward()
    for name, each in model.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(gradient[name], each.grad, atol=2e-5, rtol=1e-3)
    assert count.tokens == tokens


def test_candidates_are_what_is_relevant_and_what_is_ranked() -> None:
    qrels = Qrels(np.array([4, 4, 7]), np.array([1, 2, 3]), np.array([1, 0, 1]))
    found = Candidates.of(qrels, np.array([4, 7]), np.array([[5, 1], [6, -1]]))
    pairs = list(zip(found.query_rows.tolist(), found.doc_rows.tolist(), strict=True))
    assert pairs == [(4, 1), (4, 5), (7, 3), (7, 6)]


@pytest.mark.parametrize("scorer", ["pooled", "dual"])
def test_a_cross_encoder_learns_and_teaches(taught: Make, scorer: str) -> None:
    more = TRAINING if scorer == "pooled" else f"{TRAINING[:-1]}, temperature: 0.1}}"
    workspace = taught(scorer, "[{recipe: score-kl, loss: {temperature: 0.1}}]", more=more)
    checks.encoders(workspace)
    teacher = teaching(workspace)
    assert [stage.done for stage in teacher.stages] == [False, False]
    teacher.make()
    assert [stage.done for stage in teacher.stages] == [True, True]
    told = curve(workspace)
    assert told["step"] == [40, 80, 120]
    assert told["loss"][-1] < 0.2 * told["loss"][0]
    run = runs_of(workspace.experiment, workspace.experiment.recipes[0])[0]
    batch = workspace.plan(run.training).batch(0)
    said = teacher.signals(run)(batch)
    assert float((said.scores[:, 0] > said.scores[:, 1:].amax(dim=1)).float().mean()) > 0.7, "by chance a third"
    assert said.space == ("logit" if scorer == "pooled" else "cosine")
    training, scoring = teacher.costs.values()
    assert training.examples == 30 * 32
    assert (training.stage, scoring.stage, scoring.examples) == ("teaching", "teaching", len(teacher.pairs))
    assert training.flops > scoring.flops > 0
    assert "trained here" in teacher.in_words


def test_the_best_weights_teach(taught: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, models = iter([0.3, 0.9, 0.5]), []
    plain = CrossEncoderLearner.validate

    def scored(self: Any, candidates: Any) -> Any:
        models.append({name: value.clone() for name, value in self._model.backbone.state_dict().items()})
        return plain(self, candidates)._replace(score=next(scores))

    monkeypatch.setattr(CrossEncoderLearner, "validate", scored)
    workspace = taught("dual", more=TRAINING.replace("epochs: 30", "epochs: 2"))
    teaching(workspace).make()
    (stage,) = teaching(workspace).scorer.stages
    kept = load_cross_encoder(stage.path / "model", Scoring("dual")).backbone.state_dict()
    assert kept.keys() == models[1].keys()
    assert all(torch.equal(value, models[1][name]) for name, value in kept.items())
    assert json.loads((stage.path / "model" / "score.json").read_text()) == 0.9


def test_a_killed_training_goes_on(taught: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = TRAINING.replace("epochs: 30", "epochs: 3, dropout: 0.2, checkpoint_seconds: 0")
    whole = taught("pooled", "[score-kl]", f"store={tmp_path}/whole", more=more)
    expected = teaching(whole).folders["teacher_scores"]
    steps: list[int] = []
    plain = CrossEncoderLearner.learn

    def killed(self: Any, step: int, group: Group) -> Any:
        steps.append(step)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return plain(self, step, group)

    monkeypatch.setattr(CrossEncoderLearner, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        teaching(taught("pooled", more=more)).make()
    workspace = taught("pooled", more=more)
    found = teaching(workspace).folders["teacher_scores"]
    assert steps == [*range(7), *range(6, 12)], "from the newest checkpoint"
    assert read_arrow(found / "scores.arrow") == read_arrow(expected / "scores.arrow")
    assert curve(workspace) == curve(whole)
    (stage,) = teaching(workspace).scorer.stages
    left = {path.name for path in stage.path.iterdir()}
    assert left == {"journal.jsonl", "manifest.json", "model", "part-00000.arrow"}


def test_students_are_drawn_to_vectors_in_context(taught: Make, tiny_model: Path) -> None:
    workspace = taught("dual", "[embedding-matching]", more="")
    checks.encoders(workspace)
    teacher, run = teaching(workspace), runs_of(workspace.experiment, workspace.experiment.recipes[0])[0]
    teacher.make()
    worker = Workspace.of(workspace.opened)
    plan = workspace.plan(run.training)
    assert plan.total_steps > 4
    model = load_cross_encoder(tiny_model, Scoring("dual"))
    texts = teacher.scorer._texts.tokens
    for step in (0, 5):
        batch = plan.batch(step)
        said = teaching(worker).signals(run)(batch)
        rows = np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
        pairs = model.layout.pairs(texts, np.repeat(batch.queries, 3), rows.ravel())
        expected = workspace.encoding("fp32", None).embed(model, pairs).view(8, 3, 64)
        torch.testing.assert_close(torch.cat([said.queries, said.documents], dim=-1), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(said.scores, (said.queries * said.documents).sum(-1), atol=1e-5, rtol=0)
    run_trial(worker, run, lambda point: None)
    points = [json.loads(line)["point"] for line in (workspace.trial(run).path / JOURNAL).read_text().splitlines()]
    assert {"query_misalignment", "document_misalignment"} <= set(points[-1]["diagnostics"])
    assert points[-1]["loss"] < 0.7 * points[0]["loss"]


@pytest.mark.parametrize(
    ("scorer", "recipe", "settings", "message"),
    [
        (
            "dual",
            "{recipe: score-kl, loss: {in_batch: true}}",
            (),
            "score-kl needs vectors of texts alone, and a cross_encoder's are of pairs",
        ),
        ("dual", "relational-matching", (), "relational-matching needs vectors of texts alone"),
        ("pooled", "embedding-matching", (), "embedding-matching needs teacher documents and teacher queries"),
        (
            "dual",
            "embedding-matching",
            ("negatives={source: mined, refresh: 1}",),
            "refreshed negatives are not known then",
        ),
        ("triple", "score-kl", (), "teacher.cross_encoder.scorer: "),
        ("pooled", "score-kl", ("teacher.cross_encoder.training.batch_size=99",), "teacher.cross_encoder.training"),
    ],
)
def test_what_cannot_be_is_refused(
    taught: Make, scorer: str, recipe: str, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        checks.encoders(taught(scorer, f"[{recipe}]", *settings))
    assert message in str(refused.value)
