"""Students of another encoder than the experiment's, of the teacher's layers, and of two towers.

A student with its teacher's document encoder encodes queries alone: what it learns from is its own vectors of queries
against the teacher's of documents, its index is the teacher's, and it is one model of two towers when it is saved.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_flow
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from data import UserError
from orchestrator import checks, embeddings
from orchestrator.compare import Job
from orchestrator.config import RecipeSettings, load
from orchestrator.console import Display
from orchestrator.encoder import DOCUMENT_TOWER, QUERY_TOWER, load_encoder, own_pooling, parameters, save_encoder
from orchestrator.evaluation import evaluate_all, trained, untrained
from orchestrator.records import Progress
from orchestrator.runs import RunSpec, runs_of
from orchestrator.trial import read_trial, run_trial
from orchestrator.weights import locate
from orchestrator.workspace import MODEL, Workspace

pytestmark = pytest.mark.usefixtures("one_cpu")

Make = Callable[..., Workspace]
WHOLE = "{{encoder: {{model: {model}, query_tokens: 16, document_tokens: 24}}}}"
INHERITS = "document_encoder: teacher"
MATCHING = "recipe: embedding-matching, loss: {side: query}"


@pytest.fixture
def taught(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Make:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)

    def make(recipes: str, *settings: str, teacher: str | None = WHOLE) -> Workspace:
        named = [f"teacher={teacher.format(model=tiny_model)}"] if teacher else []
        return Workspace(load(path, [*named, f"recipes={recipes}", "negatives.per_query=2", *settings]))

    return make


@pytest.fixture
def wide(tmp_path: Path, tiny_model: Path) -> Path:
    """A model of 48 dimensions, of the same tokenizer."""
    folder = tmp_path / "wide"
    shutil.copytree(tiny_model, folder)
    settings = transformers.BertConfig.from_pretrained(tiny_model)
    settings.hidden_size = 48
    torch.manual_seed(1)
    transformers.BertModel(settings).save_pretrained(folder)
    return folder


def run_of(workspace: Workspace, row: int = 0) -> RunSpec:
    return runs_of(workspace.experiment, workspace.experiment.recipes[row])[0]


def trained_run(workspace: Workspace, row: int = 0) -> tuple[RunSpec, list[Progress]]:
    run, points = run_of(workspace, row), []
    if workspace.teaching:
        workspace.teaching.make()
    run_trial(workspace, run, points.append)
    return run, points


def test_only_queries_are_encoded_and_met_by_the_teachers_documents(taught: Make) -> None:
    row = f"{{recipe: infonce, loss: {{temperature: 0.1}}, encoder: {{layers: [1], {INHERITS}}}}}"
    workspace = taught(f"[{row}]", "training.learning_rate=1e-12")
    run, _ = trained_run(workspace)
    student, encoding = workspace.for_run(run), workspace.encoding("fp32", None)
    plan, tokens = student.plan(run.training), student.tokens
    encoder, teacher = student.load_encoder(), workspace.load_encoder()
    assert (len(encoder.backbone.encoder.layer), len(teacher.backbone.encoder.layer)) == (1, 2)
    values, encoded = [], 0
    for step in range(plan.total_steps):
        batch = plan.batch(step)
        rows = np.concatenate([batch.positives, batch.negatives.ravel()])
        q = encoding.embed(encoder, tokens.queries.take(batch.queries))
        d = encoding.embed(teacher, tokens.documents.take(rows))
        logits = (q @ d.T / 0.1).masked_fill(torch.from_numpy(plan.relevant(batch)), -torch.inf)
        values.append(float(F.cross_entropy(logits, torch.arange(len(q)))))
        encoded += int(tokens.queries.lengths[np.unique(batch.queries)].sum())
    trial = read_trial(workspace.trial(run), run)
    assert [point.loss for point in trial.curve] == pytest.approx(values, abs=1e-4)
    assert trial.costs[0].tokens == encoded


def test_a_student_that_is_all_of_its_teacher_has_nothing_to_learn_and_finds_the_same(taught: Make) -> None:
    workspace = taught(f"[{{{MATCHING}, encoder: {{model: teacher, {INHERITS}}}}}]", "training.learning_rate=1e-12")
    run, points = trained_run(workspace)
    assert max(point.loss for point in points) < 1e-3  # the norm of a difference of float32 vectors
    student = workspace.for_run(run)
    encoding = workspace.encoding("fp32", None)
    whole = workspace.validator(encoding)(workspace.load_encoder(), _alone())
    assert points[-1].validation == pytest.approx(whole.score)
    assert student.pool is workspace.pool
    found = evaluate_all(workspace, {"untrained": untrained(workspace), "student": trained(workspace, run)})
    assert found["student"].measures == pytest.approx(found["untrained"].measures)


def _alone():  # type: ignore[no-untyped-def]
    from orchestrator.group import Group

    return Group()


def test_the_teacher_is_measured_beside_its_students(taught: Make) -> None:
    workspace = taught(f"[{{{MATCHING}, encoder: {{layers: [0], {INHERITS}}}}}]", "encoder.layers=[1]")
    job = Job(workspace.experiment, Display())
    assert job.workspace.teaching is not None
    job.workspace.teaching.make()
    run = run_of(workspace)
    run_trial(job.workspace, run, lambda point: None)
    trials = {run.row: job._finished(job.experiment.recipes[0])}
    comparison = job._comparison(trials, {run.row: ()}, job.evaluate(trials))
    assert [result.name for result in comparison.results] == ["untrained", "teacher", "embedding-matching"]
    figures = [result.encoder for result in comparison.results]
    whole = load_encoder(job.workspace.model.path, pooling="mean", normalize=True)
    sizes = [parameters(whole), parameters(job.workspace.load_encoder())]
    assert [each.parameters for each in figures if each] == [sizes[1], sizes[0], sizes[1]]
    assert all(each and 0 < each.median_ms <= each.p95_ms for each in figures)
    assert comparison.results[1].trials == ()


def test_its_index_is_the_teachers_vectors_which_are_not_made_again(
    taught: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = taught(f"[{{{MATCHING}, encoder: {{layers: [0], {INHERITS}}}}}]")
    run, _ = trained_run(workspace)
    vectors = trained(workspace, run)
    assert workspace.teaching is not None
    assert vectors.documents.stage(workspace.store).path == workspace.teaching.folders["teacher_documents"]
    made = []
    make = embeddings.EncodeShard.__call__
    monkeypatch.setattr(
        embeddings.EncodeShard, "__call__", lambda self, shard: made.append(shard.folder.name) or make(self, shard)
    )
    measured = evaluate_all(workspace, {"student": vectors})["student"]
    assert len(made) == 1  # the test queries
    assert measured.cost.examples == tiny_flow.TEST_QUERIES


def test_two_towers_are_one_model_for_sentence_transformers(taught: Make, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    workspace = taught(f"[{{{MATCHING}, encoder: {{layers: [0], {INHERITS}}}}}]")
    run, _ = trained_run(workspace)
    folder = workspace.trial(run).path / MODEL
    model = SentenceTransformer(str(folder), device="cpu")
    vectors = trained(workspace, run)
    texts = workspace.collection.documents["text"].to_pylist()
    expected = embeddings.opened(workspace.embed([vectors.documents])[0])
    np.testing.assert_allclose(model.encode_document(texts), expected, atol=1e-5)
    query = workspace.collection.queries["text"][0].as_py()
    encoder, encoding = workspace.trained_model(run).load(), workspace.encoding("fp32", None)
    own = encoding.embed(encoder, workspace.for_run(run).tokens.queries.take([0]))
    np.testing.assert_allclose(model.encode_query([query]), own.numpy(), atol=1e-5)
    assert not np.allclose(model.encode_document([query]), own.numpy(), atol=1e-2)
    assert model.similarity_fn_name == "cosine"
    layers = [load_encoder(folder / tower, pooling="mean", normalize=True) for tower in (QUERY_TOWER, DOCUMENT_TOWER)]
    assert [tower.config.num_hidden_layers for tower in layers] == [1, 2]


@pytest.mark.parametrize("inherits", ["", f", {INHERITS}"])
def test_a_student_of_another_dimension_is_projected_and_saved_with_its_projection(
    taught: Make, wide: Path, inherits: str
) -> None:
    from sentence_transformers import SentenceTransformer

    teacher = f"{{{{encoder: {{{{model: {wide}, query_tokens: 16, document_tokens: 24}}}}}}}}"
    workspace = taught(f"[{{{MATCHING}, encoder: {{layers: [0]{inherits}}}}}, arm-adaptive]", teacher=teacher)
    checks.encoders(workspace)
    run, points = trained_run(workspace)
    assert points[-1].loss < points[0].loss
    encoder = workspace.trained_model(run).load()
    assert (encoder.dimension, encoder.config.hidden_size) == (48, 32)
    assert encoder.projection is not None
    start = workspace.for_run(run).load_encoder(48).projection
    assert start is not None
    eye = start.weight.T @ start.weight
    torch.testing.assert_close(eye, torch.eye(32), atol=1e-5, rtol=0)
    assert not torch.allclose(start.weight, encoder.projection.weight, atol=1e-4)
    folder = workspace.trial(run).path / MODEL
    texts = [workspace.collection.queries["text"][0].as_py()]
    own = workspace.encoding("fp32", None).embed(encoder, workspace.tokens.queries.take([0]))
    theirs = SentenceTransformer(str(folder), device="cpu").encode_query(texts)
    np.testing.assert_allclose(theirs, own.numpy(), atol=1e-5)
    # What does not set vectors against vectors keeps its own dimension.
    other, _ = trained_run(workspace, 1)
    assert workspace.trained_model(other).load().dimension == 32


def test_a_projected_encoder_is_trained_again_from_what_was_saved(taught: Make, wide: Path) -> None:
    teacher = f"{{{{encoder: {{{{model: {wide}, query_tokens: 16, document_tokens: 24}}}}}}}}"
    first = taught(f"[{{{MATCHING}}}]", teacher=teacher)
    run, _ = trained_run(first)
    saved = first.trial(run).path / MODEL
    again = taught("[arm-adaptive]", f"encoder.model={saved}", teacher=None)
    encoder = again.load_encoder()
    assert (again.facts.dimension, encoder.dimension) == (48, 48)
    assert torch.equal(encoder.projection.weight, first.trained_model(run).load().projection.weight)
    assert parameters(encoder) == parameters(first.load_encoder()) + 32 * 48


def test_a_row_teaches_the_others_and_they_start_from_what_it_learned(taught: Make) -> None:
    student = f"{{{MATCHING}, encoder: {{model: teacher, {INHERITS}}}, training: {{learning_rate: 1.0e-12}}}}"
    cut = f"{{{MATCHING}, name: cut, encoder: {{model: teacher, layers: [1], {INHERITS}}}}}"
    workspace = taught(f"[arm-adaptive, {student}, {cut}]", teacher="{{row: arm-adaptive}}")
    checks.collection(workspace)
    checks.encoders(workspace)
    teacher = run_of(workspace)
    assert workspace.opened.taught is None  # which the teacher's own training starts from
    run_trial(workspace, teacher, lambda point: None)
    assert workspace.opened.taught is not None
    taught_of = workspace.trained_model(teacher).load()
    run, points = trained_run(workspace, 1)
    assert max(point.loss for point in points) < 1e-3
    started = workspace.for_run(run_of(workspace, 2)).load_encoder()
    state, whole = started.state_dict(), taught_of.state_dict()
    layer = "backbone.encoder.layer.{}.output.dense.weight"
    assert torch.equal(state[layer.format(0)], whole[layer.format(1)])
    assert not torch.equal(state[layer.format(0)], workspace.load_encoder().state_dict()[layer.format(1)])
    found = evaluate_all(workspace, {"teacher": trained(workspace, teacher), "student": trained(workspace, run)})
    assert found["student"].measures == pytest.approx(found["teacher"].measures)
    # Another teacher is another student, and what trains a row that is taught by nobody is as it was.
    other = taught(f"[arm-adaptive, {student}]", "recipes.0.training.epochs=1", teacher="{{row: arm-adaptive}}")
    assert other.trial(run_of(other, 1)).fingerprint != workspace.trial(run).fingerprint
    alone = taught("[arm-adaptive]", teacher=None)
    assert alone.trial(run_of(alone)).fingerprint == workspace.trial(teacher).fingerprint


def test_layers_of_a_teacher_that_is_cut_itself(taught: Make) -> None:
    cut = WHOLE.replace("query_tokens", "layers: [1], query_tokens")
    workspace = taught(f"[{{{MATCHING}, encoder: {{model: teacher, layers: [0]}}}}]", teacher=cut)
    student, whole = workspace.for_run(run_of(workspace)), workspace.load_encoder()
    layer = "backbone.encoder.layer.{}.output.dense.weight"
    assert torch.equal(student.load_encoder().state_dict()[layer.format(0)], whole.state_dict()[layer.format(1)])
    beyond = taught(f"[{{{MATCHING}, encoder: {{model: teacher, layers: [1]}}}}]", teacher=cut)
    with pytest.raises(UserError) as refused:
        checks.encoders(beyond)
    told = "recipes.0.encoder.layers: layer 1 of an encoder with 1. Give layers from 0 to 0."
    assert str(refused.value) == told


def test_a_worker_opens_the_student_that_the_driver_has(taught: Make, wide: Path) -> None:
    teacher = f"{{{{encoder: {{{{model: {wide}, query_tokens: 16, document_tokens: 24}}}}}}}}"
    workspace = taught(f"[{{{MATCHING}, encoder: {{layers: [1], {INHERITS}}}}}]", teacher=teacher)
    assert workspace.teaching is not None
    workspace.teaching.make()
    run = run_of(workspace)
    worker = Workspace.of(workspace.for_run(run).opened)
    assert worker.for_run(run) is worker
    assert worker.trial(run).fingerprint == workspace.trial(run).fingerprint
    run_trial(worker, run, lambda point: None)
    assert workspace.trial(run).done


def test_rows_share_negatives_and_validation_whatever_they_train(taught: Make) -> None:
    mined = "negatives={source: mined, depth: 9, per_query: 2}"
    workspace = taught("[arm-adaptive, {recipe: infonce, loss: {temperature: 0.1}, encoder: {layers: [0]}}]", mined)
    whole, cut = (workspace.for_run(run_of(workspace, row)) for row in (0, 1))
    assert whole is workspace
    assert cut.sources is workspace.sources
    assert [each is workspace for each in workspace.students] == [True, False]
    batches = [each.plan(each.experiment.training).batch(3) for each in (whole, cut)]
    assert np.array_equal(batches[0].negatives, batches[1].negatives)


def test_batches_by_tokens_count_the_texts_that_are_encoded(taught: Make) -> None:
    rows = f"[{{{MATCHING}, encoder: {{{INHERITS}}}}}, {{{MATCHING}, name: shared}}]"
    workspace = taught(rows, 'training.batch_size="64 tokens"')
    alone, both = (workspace.for_run(run_of(workspace, row)) for row in (0, 1))
    settings = workspace.experiment.training
    assert alone.plan(settings).total_steps < both.plan(settings).total_steps / 3


@pytest.mark.parametrize(
    ("teacher", "recipes", "message"),
    [
        (None, f"[{{recipe: arm-adaptive, encoder: {{{INHERITS}}}}}]", "there is no teacher with an encoder"),
        (None, "[{recipe: arm-adaptive, encoder: {model: teacher}}]", "there is no teacher with an encoder"),
        ("{{row: arm-adaptve}}", "[arm-adaptive]", 'no row "arm-adaptve". Did you mean "arm-adaptive"?'),
        ("{{row: margin-mse}}", "[margin-mse]", "margin-mse learns from a teacher itself"),
        (
            "{{row: mixed}}",
            "[{recipe: weighted-sum, name: mixed, loss: {terms: infonce + score-kl}}, margin-mse]",
            "mixed learns from a teacher itself",
        ),
        (
            "{{row: infonce}}",
            "[{recipe: infonce, tune: {}}, margin-mse]",
            "infonce is tuned, and a teacher is one run",
        ),
        ("{{row: arm-adaptive}}", "[{recipe: arm-adaptive, encoder: {model: teacher}}]", "is the row's own"),
        (
            None,
            "[{recipe: matryoshka, loss: {dimensions: 64}}]",
            "recipes.0.loss: 64 components are not a part of vectors of 32",
        ),
        (None, "[{recipe: weighted-sum, loss: {terms: infonc}}]", 'recipes.0.loss: "infonc" is not a loss here'),
        (None, "[{recipe: weighted-sum, loss: {terms: infonce}, tune: {}}]", "has the knobs that its row names"),
        (None, "[embed-distill]", "embed-distill learns from a teacher, and there is none"),
        (WHOLE, "[{recipe: arm-adaptive, encoder: {layer: [0]}}]", 'encoder.layer: "layer" is not a key here'),
        (WHOLE, "[{recipe: arm-adaptive, encoder: [0]}]", "must be a mapping, not a list"),
        (WHOLE, "[{recipe: arm-adaptive, encoder: {layers: [7]}}]", "recipes.0.encoder.layers: layer 7 of an"),
        (WHOLE, "[{recipe: arm-adaptive, encoder: {query_tokens: 99}}]", "recipes.0.encoder.query_tokens: 99 tokens"),
    ],
)
def test_what_no_student_can_be_is_refused(taught: Make, teacher: str | None, recipes: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        checks.encoders(taught(recipes, teacher=teacher))
    assert message in str(refused.value)


def test_a_model_pools_as_its_own_files_say_unless_the_experiment_says_otherwise(
    taught: Make, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cls"
    encoder = load_encoder(tiny_model, pooling="cls", normalize=True)
    save_encoder(encoder, folder, tokenizer=tiny_model, max_tokens=24)
    teacher = f"{{{{encoder: {{{{model: {folder}, query_tokens: 16, document_tokens: 24}}}}}}}}"
    rows = f"[{{{MATCHING}, encoder: {{model: teacher}}}}, {{recipe: arm-adaptive, encoder: {{model: {folder}}}}}]"
    workspace = taught(rows, teacher=teacher)
    taught_by_cls, own_cls = (workspace.for_run(run_of(workspace, row)) for row in (0, 1))
    assert [each.pooling for each in (workspace, taught_by_cls, own_cls)] == ["mean", "cls", "cls"]
    assert workspace.teaching is not None
    assert workspace.teaching.model.pooling == "cls"
    said = taught(rows, "encoder.pooling=mean", teacher=teacher)
    assert said.for_run(run_of(said, 1)).pooling == "mean"
    kept = own_cls.model.path  # in the store, where a worker finds it
    assert own_pooling(kept) == "cls"
    run, _ = trained_run(workspace, 0)
    worker = Workspace.of(taught_by_cls.opened)
    assert (worker.pooling, worker.trial(run).done) == ("cls", True)


def test_a_model_normalizes_as_its_own_files_say_unless_the_experiment_says_otherwise(
    taught: Make, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dot"
    encoder = load_encoder(tiny_model, pooling="mean", normalize=False)
    save_encoder(encoder, folder, tokenizer=tiny_model, max_tokens=24)
    teacher = f"{{{{encoder: {{{{model: {folder}, query_tokens: 16, document_tokens: 24}}}}}}}}"
    rows = f"[{{{MATCHING}, encoder: {{model: teacher}}}}, {{recipe: arm-adaptive, encoder: {{model: {folder}}}}}]"
    workspace = taught(rows, teacher=teacher)
    taught_by_dot, own_dot = (workspace.for_run(run_of(workspace, row)) for row in (0, 1))
    assert [each.normalize for each in (workspace, taught_by_dot, own_dot)] == [True, False, False]
    assert workspace.teaching is not None
    assert (workspace.teaching.model.normalize, workspace.teaching.space) == (False, "dot")
    said = taught(rows, "encoder.normalize=true", teacher=teacher)
    assert said.for_run(run_of(said, 1)).normalize
    run, _ = trained_run(workspace, 0)
    worker = Workspace.of(taught_by_dot.opened)
    assert (worker.normalize, worker.trial(run).done, worker.trained_model(run).normalize) == (False, True, False)
    assert locate(str(workspace.trial(run).path / MODEL)).normalizes is False
    # A model without such files is one with them that says true.
    plain, unsaid = (taught("[arm-adaptive]", *how, teacher=None) for how in (["encoder.normalize=true"], []))
    assert plain.trial(run_of(plain)).fingerprint == unsaid.trial(run_of(unsaid)).fingerprint
    assert plain.starting_model == unsaid.starting_model


def test_another_model_keeps_all_of_its_layers(taught: Make, wide: Path) -> None:
    workspace = taught(f"[{{recipe: arm-adaptive, encoder: {{model: {wide}}}}}]", "encoder.layers=[1]", teacher=None)
    assert run_of(workspace).encoder.layers is None
    assert workspace.load_encoder().config.num_hidden_layers == 1
    assert workspace.for_run(run_of(workspace)).load_encoder().config.num_hidden_layers == 2


def test_a_projection_comes_after_the_pooling_and_before_the_length(tiny_model: Path) -> None:
    encoder = load_encoder(tiny_model, pooling="mean", normalize=True)
    encoder.project(48, seed=3)
    ids = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    states = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = torch.stack([states[0].mean(0), states[1, :3].mean(0)])
    expected = F.normalize(pooled @ encoder.projection.weight.T, dim=-1)  # type: ignore[union-attr]
    torch.testing.assert_close(encoder(ids, mask), expected)


def test_adapters_are_learned_and_are_in_the_weights_of_what_is_saved(taught: Make) -> None:
    adapted = "{recipe: infonce, loss: {temperature: 0.1}, encoder: {lora: {rank: 2, alpha: 4}}}"
    workspace = taught(f"[{adapted}]", "training.checkpoint_seconds=0", teacher=None)
    run = run_of(workspace)
    start, plain = workspace.for_run(run).load_encoder(), workspace.load_encoder()
    encoding, ids = workspace.encoding("fp32", None), workspace.tokens.queries.take(range(5))
    torch.testing.assert_close(encoding.embed(start, ids), encoding.embed(plain, ids))
    learned = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    assert learned
    assert all("lora" in name for name in learned)

    points: list[Progress] = []

    def kill(point: Progress) -> None:
        points.append(point)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(workspace, run, kill)
    run_trial(workspace, run, points.append)  # from its checkpoint
    saved, base = load_file(workspace.trial(run).path / MODEL / "model.safetensors"), plain.backbone.state_dict()
    assert saved.keys() == base.keys()
    changed = {name for name in saved if not torch.equal(saved[name], base[name])}
    assert changed == {name for name in base if ".weight" in name and base[name].ndim == 2 and "embeddings" not in name}
    for name in changed:
        assert torch.linalg.matrix_rank(saved[name] - base[name], atol=1e-5) <= 2
    validated = workspace.validator(encoding)(workspace.trained_model(run).load(), _alone()).score
    assert points[-1].validation == pytest.approx(validated)


def test_a_comparison_trains_the_teacher_first(taught: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = taught(f"[{{{MATCHING}}}, arm-adaptive]", teacher="{{row: arm-adaptive}}")
    job, order = Job(workspace.experiment, Display()), []

    def run(rows: list[RecipeSettings]) -> None:
        for row in rows:
            order.append(row.name)
            run_trial(job.workspace, runs_of(job.experiment, row)[0], lambda point: None)

    monkeypatch.setattr(job, "_run", run)
    job.ready()
    assert order == ["arm-adaptive"]
    job.train()
    assert order == ["arm-adaptive", "embedding-matching"]


def test_a_share_of_the_training_queries_is_of_those_that_were_asked(taught: Make) -> None:
    row = "{recipe: infonce, loss: {temperature: 0.1}, training: {queries: %s, share: %s, batch_size: 1, epochs: 1}}"
    rows = ", ".join(
        row % (kind, share) + f", name: r{number}}}"
        for number, (kind, share) in enumerate((("judged", 1), ("judged", 0.5), ("judged", 0.25), ("both", 0.25)))
    ).replace("}}, name", "}, name")
    made = "generation={generator: inverse-cloze, documents: 10}"
    workspace = taught(f"[{rows}]", made, teacher=None)

    def queries(number: int) -> set[int]:
        run = run_of(workspace, number)
        plan = workspace.for_run(run).plan(run.training)
        return {int(plan.batch(step).queries[0]) for step in range(plan.total_steps)}

    whole, half, quarter, both = map(queries, range(4))
    assert (len(whole), len(half), len(quarter)) == (32, 16, 8)
    assert quarter < half < whole
    generated = workspace.learning_from("both").collection.generated
    assert {row for row in both if not generated[row]} == quarter
    assert sum(generated[row] for row in both) == generated.sum() > 5


def test_what_students_share_is_in_the_ledger_once(taught: Make) -> None:
    rows = ", ".join(
        f"{{{MATCHING}, name: {name}, encoder: {{layers: {layers}, {INHERITS}}}, training: {{queries: both}}}}"
        for name, layers in (("first", [0]), ("second", [1]))
    )
    workspace = taught(f"[{rows}]", "generation={generator: inverse-cloze, documents: 10}")
    job = Job(workspace.experiment, Display())
    job.generate()
    job.teach()
    students = job.workspace.students
    assert len(students) == 3
    assert len({id(each.generation) for each in students}) == 1
    shared = job._shared_costs()
    assert sorted(cost.stage for cost in shared) == [
        "generation",
        "teaching",
        "teaching",
        "tokenizing",
        "tokenizing",
    ]
    assert {cost.queries for cost in shared if cost.stage != "tokenizing"} == {("both",)}
