"""Models of two towers, as teacher, start, miner and judge: queries go through one of them and documents through the
other, with the pooling, length and tokenizer of each, and the vectors are those of sentence-transformers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flow
import torch
import transformers

from data import Store, UserError
from data.collection import GENERATED
from orchestrator import checks, embeddings
from orchestrator.config import load
from orchestrator.encoder import DOCUMENT_TOWER, QUERY_TOWER
from orchestrator.evaluation import evaluate_all, trained, untrained
from orchestrator.evaluation import teacher as teacher_of
from orchestrator.runs import RunSpec, runs_of
from orchestrator.search.vectors import Floats
from orchestrator.trial import run_trial
from orchestrator.weights import keep, locate
from orchestrator.workspace import MODEL, Workspace

pytestmark = pytest.mark.usefixtures("one_cpu")

Make = Callable[..., Workspace]
LENGTHS = "query_tokens: 16, document_tokens: 24"
MATCHING = "recipe: embedding-matching, loss: {side: query}"
INHERITS = "document_encoder: teacher"
TESTED = slice(tiny_flow.TRAIN_QUERIES, None)  # the rows of the test queries


@pytest.fixture(scope="module")
def tiny_documents(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A BERT of 48 dimensions, that has the words of the other one in another order."""
    folder = tmp_path_factory.mktemp("documents") / "model"
    folder.mkdir()
    special, *words = (tiny_model / "vocab.txt").read_text().split("[MASK]\n")
    own = words[0].split("\n")
    random.Random(2).shuffle(own)
    (folder / "vocab.txt").write_text(special + "[MASK]\n" + "\n".join(own))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    settings = transformers.BertConfig.from_pretrained(tiny_model)
    settings.hidden_size, settings.num_hidden_layers, settings.max_position_embeddings = 48, 1, 40
    torch.manual_seed(8)
    transformers.BertModel(settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def modules(tiny_model: Path, tiny_documents: Path) -> Callable[[], Any]:
    """The modules of both towers: mean pooling of 32 dimensions, and the first token's of 48, mapped to 32."""
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    def make() -> Any:
        torch.manual_seed(4)
        linear = Dense(48, 32, activation_function=torch.nn.Identity())
        queries = [Transformer(str(tiny_model), max_seq_length=16), Pooling(32)]
        return queries, [Transformer(str(tiny_documents), max_seq_length=24), Pooling(48, "cls"), linear]

    return make


def saved(folder: Path, modules: Any, **options: Any) -> Path:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder))
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory, modules: Callable[[], Any]) -> Path:
    """A model of these two, as sentence-transformers saves it; compared by cosine. Not to be changed."""
    from sentence_transformers.sentence_transformer.modules import Router

    return saved(tmp_path_factory.mktemp("towers") / "model", [Router.for_query_document(*modules())])


@pytest.fixture
def make(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Make:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)

    def workspace(recipes: str, *settings: str, teacher: Path | None = None, encoder: Path | None = None) -> Workspace:
        named = [f"teacher={{encoder: {{model: {teacher}, {LENGTHS}}}}}"] if teacher else []
        named += [f"encoder.model={encoder}"] if encoder else []
        return Workspace(load(path, [*named, f"recipes={recipes}", "negatives.per_query=2", *settings]))

    return workspace


def run_of(workspace: Workspace, row: int = 0) -> RunSpec:
    return runs_of(workspace.experiment, workspace.experiment.recipes[row])[0]


def trained_run(workspace: Workspace, row: int = 0) -> RunSpec:
    run = run_of(workspace, row)
    if workspace.teaching:
        workspace.teaching.make()
    run_trial(workspace, run, lambda point: None)
    return run


def expected(folder: Path, workspace: Workspace, unit: bool = True) -> tuple[Floats, Floats]:
    """What sentence-transformers makes of all queries and documents; of length 1, which cosine makes of them."""
    from sentence_transformers import SentenceTransformer

    documents = SentenceTransformer(str(folder), device="cpu").encode_document(
        workspace.collection.documents["text"].to_pylist()
    )
    queries = of_queries(folder, workspace.collection.queries["text"].to_pylist(), unit)
    return queries, documents / np.linalg.norm(documents, axis=1, keepdims=True) if unit else documents


def of_queries(folder: Path, texts: list[str], unit: bool = True) -> Floats:
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(str(folder), device="cpu").encode_query(texts)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if unit else vectors


def vectors_of(workspace: Workspace) -> tuple[Floats, Floats]:
    """Those of the test queries, and of all documents, by the encoder as it comes."""
    wanted = untrained(workspace)
    documents, queries = (embeddings.opened(folder) for folder in workspace.embed([wanted.documents, wanted.queries]))
    return queries, documents


def layout(name: str, modules: Any, folder: Path) -> Path:
    """A model in one of the layouts that sentence-transformers reads."""
    from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize, Router

    queries, documents = modules
    if name == "each normalizes":
        router = Router.for_query_document([*queries, Normalize()], [*documents, Normalize()])
        return saved(folder, [router], similarity_fn_name="dot")
    if name == "both normalize behind":
        return saved(folder, [Router.for_query_document(queries, documents), Normalize()], similarity_fn_name="dot")
    if name == "queries alone normalize":
        return saved(folder, [Router.for_query_document([*queries, Normalize()], documents)], similarity_fn_name="dot")
    if name == "none normalizes":
        return saved(folder, [Router.for_query_document(queries, documents), Dropout(0.1)], similarity_fn_name="dot")
    if name == "by name":
        mapped = {("query", "text"): "asked", ("document", None): "read"}
        router = Router({"read": documents, "asked": queries}, route_mappings=mapped)
        return saved(folder, [router])
    maps = [Dense(32, 24, activation_function=torch.nn.Identity()) for _ in "qd"]
    saved(folder, [*queries, Router.for_query_document([maps[0]], [maps[1]]), Normalize()])
    if name == "one transformer, two maps":
        return folder
    assert name == "Asym"
    at = (folder / "2_Router").rename(folder / "2_Asym")
    config = json.loads((at / "router_config.json").read_text())
    (at / "router_config.json").unlink()
    (at / "config.json").write_text(json.dumps({**config, "parameters": {"allow_empty_key": True}}))
    listed = json.loads((folder / "modules.json").read_text())
    listed[2].update(path="2_Asym", type="sentence_transformers.models.Asym")
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("each normalizes", "cosine"),
        ("both normalize behind", "cosine"),
        ("queries alone normalize", "dot"),
        ("none normalizes", "dot"),
        ("by name", "cosine"),
        ("one transformer, two maps", "cosine"),
        ("Asym", "cosine"),
    ],
)
def test_vectors_are_those_of_sentence_transformers(
    make: Make, modules: Callable[[], Any], tmp_path: Path, name: str, space: str
) -> None:
    folder = layout(name, modules(), tmp_path / "towers")
    workspace = make("[]", encoder=folder)
    checks.collection(workspace)
    checks.encoders(workspace)
    assert workspace.space == space
    own = vectors_of(workspace)
    theirs = expected(folder, workspace, unit=space == "cosine")
    np.testing.assert_allclose(own[0], theirs[0][TESTED], atol=1e-5)
    np.testing.assert_allclose(own[1], theirs[1], atol=1e-5)


def test_what_the_experiment_says_is_said_of_both_and_layers_are_those_of_queries(make: Make, towers: Path) -> None:
    workspace = make("[]", "encoder.pooling=cls", "encoder.normalize=false", "encoder.layers=[1]", encoder=towers)
    model = workspace.starting_model
    assert [(each.pooling, each.normalize, each.layers) for each in (model, model.of_documents)] == [
        ("cls", False, (1,)),
        ("cls", False, None),
    ]
    assert [each.load().config.num_hidden_layers for each in (model, model.of_documents)] == [1, 1]
    assert (model.load().dimension, model.of_documents.load().dimension) == (32, 32)
    assert model.load().config.hidden_size == 32
    assert model.of_documents.load().config.hidden_size == 48


def test_an_experiment_without_rows_measures_it_as_it_is(make: Make, towers: Path) -> None:
    workspace = make("[]", "evaluation.measures=[RR@10]", encoder=towers)
    found = evaluate_all(workspace, {"untrained": untrained(workspace)})["untrained"]
    queries, documents = expected(towers, workspace)
    scores = queries[TESTED] @ documents.T
    relevant = workspace.test_qrels.relevant
    ranks = [1 + int((line > line[row]).sum()) for line, row in zip(scores, relevant.doc_row, strict=True)]
    assert found.measures["RR@10"] == pytest.approx(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]))
    assert found.encoder.parameters == sum(p.numel() for p in workspace.starting_model.load().parameters())


@pytest.mark.parametrize(
    "recipe",
    ["margin-mse", "score-kl", "pair-kl", "embedding-matching", "relational-matching", "embed-distill", "gist"],
)
def test_it_teaches_what_a_teacher_can(make: Make, towers: Path, recipe: str) -> None:
    workspace = make(f"[{recipe}]", teacher=towers)
    checks.encoders(workspace)
    assert workspace.teaching is not None
    workspace.teaching.make()
    run = run_of(workspace)
    say, batch = workspace.teaching.signals(run), workspace.plan(run.training).batch(1)
    assert say is not None
    said = say(batch)
    queries, documents = expected(towers, workspace)
    q, d = queries[batch.queries], documents[np.concatenate([batch.positives[:, None], batch.negatives], axis=1)]
    heard = {"teacher_queries": (said.queries, q), "teacher_documents": (said.documents, d)}
    heard["teacher_scores"] = (said.scores, np.einsum("bd,bcd->bc", q, d))
    for need in run.teacher_needs:
        np.testing.assert_allclose(heard[need][0], heard[need][1], atol=1e-5)
    points: list[Any] = []
    run_trial(workspace, run, points.append)
    assert all(np.isfinite(point.loss) for point in points)


def test_its_document_tower_is_inherited_and_its_query_tower_learns(make: Make, towers: Path) -> None:
    row = f"{{recipe: infonce, loss: {{temperature: 0.1}}, encoder: {{model: teacher, {INHERITS}}}}}"
    workspace = make(f"[{row}]", teacher=towers)
    checks.collection(workspace)
    checks.encoders(workspace)
    run = trained_run(workspace)
    student = workspace.for_run(run)
    assert workspace.teaching is not None
    model = workspace.teaching.model
    start, documents, learned = student.load_encoder(), model.of_documents.load(), workspace.trained_model(run).load()
    state = start.state_dict()
    assert state.keys() == learned.state_dict().keys() == model.load().state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.load().state_dict().items())
    assert not all(torch.equal(value, state[name]) for name, value in learned.state_dict().items())
    again = make("[]", encoder=workspace.trial(run).path / MODEL)
    kept, own = again.starting_model.of_documents.load(), documents.state_dict()
    assert (kept.pooling, kept.normalize, kept.dimension) == ("cls", True, 32)
    assert all(torch.equal(value, own[name]) for name, value in kept.state_dict().items())
    tokenizers = [each.model.of_documents.tokenizer_fingerprint for each in (again, workspace.teaching.encoder)]
    assert tokenizers[0] == tokenizers[1]
    found = evaluate_all(workspace, {"teacher": teacher_of(workspace), "student": trained(workspace, run)})
    assert found["student"].measures != found["teacher"].measures


def test_the_start_is_trained_against_its_own_document_tower(make: Make, towers: Path) -> None:
    row = f"{{{MATCHING}, encoder: {{{INHERITS}}}, training: {{learning_rate: 1.0e-12}}}}"
    workspace = make(f"[{row}]", teacher=towers, encoder=towers)
    checks.collection(workspace)
    checks.encoders(workspace)
    run = trained_run(workspace)
    rows = {"untrained": untrained(workspace), "student": trained(workspace, run)}
    found = evaluate_all(workspace, rows)
    assert found["student"].measures == pytest.approx(found["untrained"].measures)
    worker = Workspace.of(workspace.for_run(run).opened)
    assert (worker.trial(run).fingerprint, worker.trial(run).done) == (workspace.trial(run).fingerprint, True)
    # It is the run of a student that starts from the tower alone.
    place = keep(locate(str(towers)), workspace.store).path
    alone = make(f"[{row}]", teacher=towers, encoder=place)
    assert alone.trial(run_of(alone)).fingerprint == workspace.trial(run).fingerprint


def test_adapters_and_layers_are_those_of_the_query_tower(make: Make, towers: Path) -> None:
    row = f"{{{MATCHING}, encoder: {{layers: [1], lora: {{rank: 2}}, {INHERITS}}}}}"
    workspace = make(f"[{row}]", teacher=towers, encoder=towers)
    checks.encoders(workspace)
    run = trained_run(workspace)
    both = make("[]", encoder=workspace.trial(run).path / MODEL).starting_model
    learned, kept, start = both.load(), both.of_documents.load(), workspace.starting_model
    assert learned.config.num_hidden_layers == 1
    weight = "backbone.encoder.layer.{}.attention.self.query.weight"
    change = learned.state_dict()[weight.format(0)] - start.load().state_dict()[weight.format(1)]
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 2
    own = start.of_documents.load().state_dict()
    assert all(torch.equal(value, own[name]) for name, value in kept.state_dict().items())


def test_a_student_of_two_towers_is_read_again_as_it_was(make: Make, tiny_model: Path) -> None:
    row = f"{{{MATCHING}, encoder: {{layers: [0], pooling: cls, normalize: false, {INHERITS}}}}}"
    first = make(f"[{row}]", "training.learning_rate=1e-2", teacher=tiny_model)
    run = trained_run(first)
    was = evaluate_all(first, {"student": trained(first, run)})["student"]
    folder = first.trial(run).path / MODEL

    alone = make("[]", encoder=folder)
    checks.encoders(alone)
    found = evaluate_all(alone, {"untrained": untrained(alone)})["untrained"]
    assert (found.measures, found.per_query) == (was.measures, was.per_query)
    assert found.encoder.parameters == was.encoder.parameters

    again = make(f"[{{{MATCHING}, encoder: {{model: teacher, {INHERITS}}}}}]", teacher=folder)
    taught = trained_run(again)
    measured = evaluate_all(again, {"teacher": teacher_of(again), "student": trained(again, taught)})
    assert measured["teacher"].measures == was.measures
    queries, documents = expected(folder, again, unit=False)
    assert again.teaching is not None
    np.testing.assert_allclose(again.teaching.documents.take(np.arange(60)), documents, atol=1e-5)
    assert again.teaching.space == "dot"
    assert not np.allclose(np.linalg.norm(queries, axis=1), 1, atol=0.1)


def test_a_tower_is_the_model_that_it_is_alone(make: Make, tiny_model: Path, tmp_path: Path) -> None:
    first = make(f"[{{{MATCHING}, encoder: {{layers: [0], {INHERITS}}}}}]", teacher=tiny_model)
    folder = first.trial(trained_run(first)).path / MODEL
    both, store = locate(str(folder)), Store(tmp_path / "store")
    for tower, place in ((both, QUERY_TOWER), (both.of_documents, DOCUMENT_TOWER)):
        alone = locate(str(folder / place))
        assert (tower.fingerprint, tower.normalizes) == (alone.fingerprint, alone.normalizes)
        assert keep(tower, store).path == keep(alone, store).path


def test_it_mines_and_keeps_what_it_finds_again(make: Make, towers: Path) -> None:
    mined = f"negatives={{source: mined, depth: 9, per_query: 2, encoder: {{model: {towers}, {LENGTHS}}}}}"
    drafted = "generation={generator: salient}"
    checked = f"generation.round_trip={{depth: 5, encoder: {{model: {towers}, {LENGTHS}}}}}"
    workspace = make("[arm-adaptive]", mined, drafted, checked)
    checks.collection(workspace)
    checks.encoders(workspace)
    queries, documents = expected(towers, workspace)
    table = workspace.negatives.table(str, str).to_pylist()
    relevant = workspace.split[0].relevant
    pairs = dict(zip(relevant.query_row.tolist(), relevant.doc_row.tolist(), strict=True))
    found = {(int(line["query_id"]), int(line["doc_id"])) for line in table}
    wanted = {
        (query, int(row))
        for query in pairs
        for row in np.argsort(-(documents @ queries[query]))[:9]
        if row != pairs[query]
    }
    assert found == wanted
    worker = Workspace.of(workspace.opened)
    assert worker.sources.miners[0].starting_model == workspace.sources.miners[0].starting_model

    made, drafts = workspace.generation.collection, make("[]", drafted).generation.collection
    rows = np.flatnonzero(drafts.generated)
    texts = [drafts.queries["text"][int(row)].as_py() for row in rows]
    scores = of_queries(towers, texts) @ documents.T
    pairs_of = drafts.qrels[GENERATED]
    kept = {
        texts[line]
        for line, row in zip(np.searchsorted(rows, pairs_of.query_row), pairs_of.doc_row, strict=True)
        if (scores[line] > scores[line, row]).sum() < 5
    }
    assert 0 < len(kept) < len(texts)
    assert {made.queries["text"][int(row)].as_py() for row in np.flatnonzero(made.generated)} == kept


def test_towers_that_are_one(make: Make, modules: Callable[[], Any], tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Router

    queries, _ = modules()
    folder = saved(tmp_path / "one", [Router.for_query_document(queries, queries)])
    workspace = make("[arm-adaptive]", encoder=folder)
    checks.encoders(workspace)
    assert workspace.model.documents is None
    np.testing.assert_allclose(vectors_of(workspace)[1], expected(folder, workspace)[1], atol=1e-5)
    trained_run(workspace)


def refusal(workspace: Workspace) -> str:
    with pytest.raises(UserError) as refused:
        checks.encoders(workspace)
    return str(refused.value)


def test_what_is_refused(make: Make, towers: Path, modules: Callable[[], Any], tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Router

    told = "recipes.0.encoder.document_encoder: " + f'"{towers}" has two towers, and a row that encodes queries and '
    told += "documents alike trains one encoder. Learn the tower of the queries and keep that of the documents "
    told += f'(document_encoder: teacher, with "teacher: {{encoder: {{model: {towers}}}}}"), '
    told += "or start from one of the towers, as a model of its own."
    assert refusal(make("[arm-adaptive]", encoder=towers)) == told
    assert refusal(make("[{recipe: margin-mse, encoder: {model: teacher}}]", teacher=towers)) == told

    longer = make("[]", "encoder.query_tokens=33", "encoder.document_tokens=33", encoder=towers)
    assert refusal(longer).startswith("encoder.query_tokens: 33 tokens are more than the 32 that this encoder takes")
    longer = make("[]", "encoder.document_tokens=41", encoder=towers)
    assert refusal(longer).startswith("encoder.document_tokens: 41 tokens are more than the 40 that this encoder takes")

    queries, documents = modules()
    uneven = saved(tmp_path / "uneven", [Router.for_query_document(queries, documents[:2])])
    assert refusal(make("[margin-mse]", teacher=uneven)) == (
        "teacher.encoder.model: its towers make vectors of 32 and of 48 components, which have no product. "
        "Take a model whose towers have one dimension."
    )
    norm = saved(tmp_path / "norm", [Router.for_query_document([*queries, LayerNorm(32)], documents)])
    assert refusal(make("[]", encoder=norm)) == (
        f'encoder.model: the query tower of "{norm}" is made of Transformer, Pooling, LayerNorm, which cannot be read '
        "here. Take one of Transformer, Pooling, Dense and Normalize, in this order."
    )
    routes = saved(tmp_path / "routes", [Router({"left": queries, "right": documents})])
    assert refusal(make("[]", encoder=routes)) == (
        f'encoder.model: "{routes}" has no route for a query, but left and right. '
        "Take a model with the routes query and document."
    )
    outside = json.loads((routes / "modules.json").read_text())
    outside[0]["path"] = "../norm"
    (routes / "modules.json").write_text(json.dumps(outside))
    assert refusal(make("[]", encoder=routes)).endswith('is outside of it, in "../norm". Save the model anew.')


def test_it_is_no_cross_encoder_and_writes_nothing(make: Make, towers: Path) -> None:
    alone = f'"{towers}" is a model of two towers, and what is asked for is one encoder'
    cross = make("[margin-mse]", f"teacher={{cross_encoder: {{model: {towers}, {LENGTHS}}}}}")
    mend = "Save one of them as a model of its own."
    assert refusal(cross) == f"teacher.cross_encoder.model: {alone}. {mend}"
    for settings in ({}, {"model": str(towers)}):
        given = json.dumps({"generator": "trained", **settings})
        workspace = make("[]", f"generation={given}", encoder=towers)
        with pytest.raises(UserError) as refused:
            checks.collection(workspace)
        assert str(refused.value) == f"generation.model: {alone}. {mend}"
