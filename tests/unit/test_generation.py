"""Generated queries: what writes them, what is kept of them, and who learns from them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_flow
import torch
import transformers

from data import UserError
from data.arrow import read_arrow
from orchestrator import checks, generator, shards
from orchestrator.compare import Job
from orchestrator.config import load
from orchestrator.console import Display
from orchestrator.generator_training import GeneratorLearner, plan_of
from orchestrator.group import Group
from orchestrator.plan import describe
from orchestrator.report import wording
from orchestrator.runs import runs_of
from orchestrator.teaching import Teaching
from orchestrator.trial import run_trial
from orchestrator.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_cpu")

Make = Callable[..., Workspace]
ROWS = "[arm-adaptive, {recipe: arm-adaptive, name: both, training: {queries: both}}, {recipe: arm-adaptive, name: own, training: {queries: generated}}]"  # noqa: E501
TRAINED = (
    "{generator: trained, training: {epochs: 30, batch_size: 8, learning_rate: 3e-3, dropout: 0.0, precision: fp32}}"
)


@pytest.fixture
def experiment(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Callable[..., Any]:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)
    return lambda *settings: load(path, [f"recipes={ROWS}", *settings])


@pytest.fixture
def generating(experiment: Callable[..., Any]) -> Make:
    return lambda generation, *settings: Workspace(experiment(f"generation={generation}", *settings))


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A BART of random weights with the tokenizer of the tiny BERT."""
    return tiny_flow.write_seq2seq(tmp_path_factory.mktemp("bart"), tiny_model)


def texts_of(workspace: Workspace) -> dict[str, list[str]]:
    """Document id → the queries that were made of it."""
    made = workspace.generation.collection
    pairs, found = made.qrels["generated"], {}
    for query, row in zip(pairs.query_row.tolist(), pairs.doc_row.tolist(), strict=True):
        found.setdefault(made.document_ids[row], []).append(made.queries["text"][query].as_py())
    return found


def test_a_seq2seq_model_writes_what_transformers_writes(generating: Make, tiny_bart: Path) -> None:
    knobs = "per_document: 3, documents: 7, temperature: 0.8, top_k: 20, top_p: 0.9"
    workspace = generating(f"{{generator: seq2seq, model: {tiny_bart}, prompt: 'askba {{text}}', {knobs}}}")
    workspace.generation.check()
    found, documents = texts_of(workspace), workspace.collection.documents
    assert len(found) == 7
    assert all(len(texts) == len(set(texts)) for texts in found.values())
    assert {len(texts) for texts in found.values()} == {3}
    texts = dict(zip(documents["doc_id"].to_pylist(), documents["text"].to_pylist(), strict=True))
    model = transformers.BartForConditionalGeneration.from_pretrained(tiny_bart).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bart)
    rows = [documents["doc_id"].to_pylist().index(id_) for id_ in found]
    asked = tokenizer([f"askba {texts[id_]}" for id_ in found], return_tensors="pt", padding=True)
    torch.manual_seed(workspace.experiment.seed * 1_000_003 + rows[0])  # all have one length: they are read in order
    ids = model.generate(
        input_ids=asked["input_ids"],
        attention_mask=asked["attention_mask"],
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=16,
        temperature=0.8,
        top_k=20,
        top_p=0.9,
    )
    assert [t for texts in found.values() for t in texts] == tokenizer.batch_decode(ids, skip_special_tokens=True)
    cost = sum_of(workspace.generation.costs)
    read, wrote = int(asked["attention_mask"].sum()), int((ids != 0).sum())
    D, V = 32, model.config.vocab_size
    encoder, decoder = 2 * (4 * D * D + 2 * D * 64), 8 * D * D + 2 * D * 48
    assert (cost["examples"], cost["tokens"]) == (7, read + wrote)
    assert cost["flops"] == 2 * (read * encoder + wrote * (decoder + V * D))


def sum_of(costs: dict[str, Any]) -> dict[str, float]:
    assert {cost.stage for cost in costs.values()} == {"generation"}
    return {key: sum(getattr(cost, key) for cost in costs.values()) for key in ("examples", "tokens", "flops")}


def test_where_memory_is_short_half_is_written_at_a_time(
    generating: Make, tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sizes = generator.WriteQueries._generate, []

    def short(self: Any, sequences: Any, *others: Any) -> Any:
        sizes.append(len(sequences))
        if len(sequences) > 2:
            raise torch.OutOfMemoryError
        return plain(self, sequences, *others)

    monkeypatch.setattr(generator.WriteQueries, "_generate", short)
    settings = f"{{generator: seq2seq, model: {tiny_bart}, documents: 7}}"
    assert len(texts_of(generating(settings))) == 7
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    monkeypatch.setattr(generator.WriteQueries, "_generate", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        texts_of(generating(settings, f"store={tmp_path}/other"))


def test_a_killed_call_writes_on_at_the_next_shard(
    generating: Make, tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "SHARD_DOCUMENTS", 16)
    settings = f"{{generator: seq2seq, model: {tiny_bart}}}"
    whole = texts_of(generating(settings, f"store={tmp_path}/whole"))
    made: list[int] = []
    plain = generator.WriteQueries.__call__

    def killed(self: Any, shard: Any) -> Any:
        if len(made) == 2:
            made.append(-1)
            raise KeyboardInterrupt
        made.append(shard.number)
        return plain(self, shard)

    monkeypatch.setattr(generator.WriteQueries, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        texts_of(generating(settings))
    assert texts_of(generating(settings)) == whole
    assert made == [0, 1, -1, 2, 3]


def test_a_trained_generator_learns_to_ask(generating: Make) -> None:
    """Too little to learn what to ask about: but what it writes is worded as the queries are, not as the documents."""
    workspace = generating(TRAINED)
    found = texts_of(workspace)
    words = [word for texts in found.values() for word in texts[0].split()]
    asked, told = (np.mean([word.startswith(kind) for word in words]) for kind in ("ask", "doc"))
    assert asked > 0.4 > 0.05 > told
    (curve,) = curves(workspace)
    assert curve["step"] == [30, 60, 90, 120]
    assert curve["loss"][-1] < curve["loss"][0] - 1
    assert max(curve["validation"]) > -math.log(60), "better than by chance"


def curves(workspace: Workspace) -> list[dict[str, list[float]]]:
    stage = workspace.generation._trained
    return [read_arrow(path).to_pydict() for path in shards.files(stage.path)] if stage.done else []


def test_the_loss_is_that_of_transformers(generating: Make) -> None:
    workspace = generating(TRAINED)
    model = generator.warm_started(workspace.model.path)
    settings = workspace.experiment.generation.training
    plan = plan_of(workspace.split[0].relevant, 60, settings, 0)
    learner = GeneratorLearner(plan, workspace.tokens, model, workspace.encoding("fp32", 100))
    output, count = learner.learn(3, Group())
    gradient = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    batch = plan.batch(3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(workspace.model.path)
    collection = workspace.collection
    texts = [collection.documents["text"][row].as_py() for row in batch.positives.tolist()]
    asked = [collection.queries["text"][row].as_py() for row in batch.queries.tolist()]
    read = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=24)
    wrote = tokenizer(asked, return_tensors="pt", padding=True, truncation=True, max_length=16)
    labels = wrote["input_ids"][:, 1:].masked_fill(wrote["attention_mask"][:, 1:] == 0, -100)
    expected = model(
        input_ids=read["input_ids"],
        attention_mask=read["attention_mask"],
        decoder_input_ids=wrote["input_ids"][:, :-1],
        labels=labels,
    ).loss
    expected.backward()
    torch.testing.assert_close(output.loss, expected.detach(), atol=1e-5, rtol=1e-5)
    for name, each in model.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(gradient[name], each.grad, atol=1e-5, rtol=1e-4)
    assert count.tokens == int(read["attention_mask"].sum()) + int((labels >= 0).sum())
    D, F, V = 32, 64, model.config.decoder.vocab_size  # two layers each; the head has a D×D matrix of its own
    encoder, decoder = 2 * (4 * D * D + 2 * D * F), 2 * (8 * D * D + 2 * D * F) + D * D + V * D
    read_tokens, wrote_tokens = int(read["attention_mask"].sum()), int((labels >= 0).sum())
    assert count.flops == 3 * 2 * (read_tokens * encoder + wrote_tokens * decoder)


def test_a_killed_training_goes_on(generating: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TRAINED.replace("epochs: 30", "epochs: 3").replace("dropout: 0.0", "dropout: 0.2, checkpoint_seconds: 0")
    whole = generating(settings, f"store={tmp_path}/whole")
    texts = texts_of(whole)
    steps: list[int] = []
    plain = GeneratorLearner.learn

    def killed(self: Any, step: int, group: Group) -> Any:
        steps.append(step)
        if len(steps) == 9:
            raise KeyboardInterrupt
        return plain(self, step, group)

    monkeypatch.setattr(GeneratorLearner, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        texts_of(generating(settings))
    workspace = generating(settings)
    assert texts_of(workspace) == texts
    assert steps == [*range(9), *range(8, 12)], "from the newest checkpoint"
    assert [{**curve, "step": curve["step"]} for curve in curves(workspace)] == curves(whole)
    left = {path.name for path in workspace.generation._trained.path.iterdir()}
    assert left == {"journal.jsonl", "manifest.json", "model", "part-00000.arrow"}


def test_the_model_with_the_best_validation_is_kept(generating: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([-3.0, -1.0, -2.0, -1.5])
    models: list[dict[str, torch.Tensor]] = []
    plain = GeneratorLearner.validate

    def scored(self: Any, judgments: Any) -> Any:
        models.append({name: value.clone() for name, value in self._model.state_dict().items()})
        return plain(self, judgments)._replace(score=next(scores))

    monkeypatch.setattr(GeneratorLearner, "validate", scored)
    workspace = generating(TRAINED.replace("epochs: 30", "epochs: 2"))
    kept = generator.load_generator(workspace.generation._train())
    best = {name: value for name, value in kept.state_dict().items() if "pooler" not in name}
    assert best.keys() == models[1].keys()
    assert all(torch.equal(value, models[1][name]) for name, value in best.items())


def test_the_round_trip_keeps_what_finds_its_document(generating: Make) -> None:
    trip = "{generator: inverse-cloze, round_trip: {depth: 4}}"
    workspace, unfiltered = generating(trip), generating("{generator: inverse-cloze}")
    encoder, encoding = workspace.load_encoder(), workspace.encoding("fp32", None)
    made, tokens = unfiltered.generation.collection, unfiltered.learning_from("generated").tokens
    documents = encoding.embed(encoder, tokens.documents.take(range(60)))
    expected = []
    for query, row in zip(made.qrels["generated"].query_row, made.qrels["generated"].doc_row, strict=True):
        scores = documents @ encoding.embed(encoder, tokens.queries.take([query]))[0]
        if int((scores > scores[row]).sum()) < 4:
            expected.append(made.queries["text"][int(query)].as_py())
    assert 5 < len(expected) < 55
    assert [text for texts in texts_of(workspace).values() for text in texts] == expected
    facts = workspace.generation.facts
    assert (facts.documents, facts.written, facts.kept) == (60, 60, len(expected))
    costs = workspace.generation.costs
    assert sorted(cost.examples for cost in costs.values()) == [facts.distinct, 60, 60]
    assert sorted(cost.tokens > 0 for cost in costs.values()) == [False, True, True]


def test_the_round_trip_is_the_teachers_where_it_is_an_encoder(generating: Make, tiny_model: Path) -> None:
    teacher = f"teacher={{encoder: {{model: {tiny_model}, query_tokens: 9, document_tokens: 11}}}}"
    workspace = generating("{generator: inverse-cloze, round_trip: {}}", teacher)
    assert workspace.generation._checker.experiment.encoder.document_tokens == 11
    other = f"{{generator: inverse-cloze, round_trip: {{encoder: {{model: {tiny_model}, query_tokens: 7}}}}}}"
    assert generating(other, teacher).generation._checker.experiment.encoder.query_tokens == 7
    alone = generating("{generator: inverse-cloze, round_trip: {}}")
    assert alone.generation._checker.experiment.encoder == alone.experiment.encoder


def test_who_learns_from_what(generating: Make) -> None:
    workspace = generating("{generator: title}")
    judged, both, generated = workspace.learned_from
    assert [each.learns for each in (judged, both, generated)] == ["judged", "both", "generated"]
    assert judged is workspace
    assert not generated.collected
    assert generated.steps(workspace.experiment.training) is None
    made = workspace.generation.collection
    assert generated.collected
    titles = int(made.generated.sum())
    assert titles == len(set(made.queries["text"].to_pylist()[50:])) == 22, "many documents have the title of another"
    rows = {kind: np.unique(each.split[0].query_row) for kind, each in (("both", both), ("generated", generated))}
    assert len(judged.split[0]) == 32
    assert rows["generated"].tolist() == list(range(50, 72))
    assert rows["both"].tolist() == sorted([*judged.split[0].query_row.tolist(), *range(50, 72)])
    assert len(generated.split[0]) == 60, "each document, once"
    for each in (both, generated):
        assert each.split[1].query_row.tolist() == judged.split[1].query_row.tolist(), "nobody validates on them"
    batch = generated.plan(workspace.experiment.training).batch(0)
    assert (batch.queries >= 50).all()
    assert generated.plan(workspace.experiment.training).relevant(batch).any(), "others have the same title"


def test_runs_on_judged_queries_are_what_they_were(generating: Make, experiment: Callable[..., Any]) -> None:
    with_them, rows = generating("{generator: title}"), "recipes=[arm-adaptive]"
    without = Workspace(experiment(rows))
    ours, theirs = (w.trial(runs_of(w.experiment, w.experiment.recipes[0])[0]) for w in (with_them, without))
    assert ours.fingerprint == theirs.fingerprint
    runs = [runs_of(with_them.experiment, row)[0] for row in with_them.experiment.recipes]
    assert len({with_them.trial(run).fingerprint for run in runs}) == 3


def test_a_worker_trains_on_them_from_the_store_alone(
    generating: Make, tmp_path: Path, tiny_collection: Path, tiny_model: Path
) -> None:
    collection = tmp_path / "moved"
    shutil.copytree(tiny_collection, collection)
    at = f"collection.path={collection}"
    workspace = generating("{generator: inverse-cloze}", at, "negatives={source: bm25, depth: 6}")
    run = runs_of(workspace.experiment, workspace.experiment.recipes[1])[0]
    learning = workspace.learning_from("both")
    learning.negatives, learning.pool, learning.tokens  # noqa: B018
    opened, expected = learning.opened, workspace.trial(run).fingerprint
    shutil.rmtree(collection)
    worker = Workspace.of(opened)
    assert worker.trial(run).fingerprint == expected
    assert worker.learning_from("both") is worker
    points: list[Any] = []
    run_trial(worker, run, points.append)
    assert worker.trial(run).done
    assert len(points) == 2


def test_a_teacher_is_asked_of_them_too(generating: Make, tiny_model: Path) -> None:
    teacher = f"teacher={{encoder: {{model: {tiny_model}, query_tokens: 16, document_tokens: 24}}}}"
    matching = "{recipe: embedding-matching, loss: {side: query}, name: NAME, training: {queries: KIND}}"
    kinds = ("judged", "both", "generated")
    rows = ", ".join(matching.replace("NAME", kind).replace("KIND", kind) for kind in kinds)
    workspace = generating("{generator: title}", teacher, f"recipes=[{rows}]")
    checks.encoders(workspace)
    workspace.generation.collection  # noqa: B018
    encoder, encoding = workspace.load_encoder(), workspace.encoding("fp32", None)
    for each, count in zip(workspace.learned_from, (32, 54, 22), strict=True):
        assert isinstance(each.teaching, Teaching)
        row = workspace.experiment.recipes[kinds.index(each.learns)]
        run = runs_of(workspace.experiment, row)[0]
        batch = each.plan(run.training).batch(0)
        said = each.teaching.signals(run)
        assert said is not None
        vectors = said(batch).queries
        q = encoding.embed(encoder, each.tokens.queries.take(batch.queries))
        torch.testing.assert_close(vectors, q, atol=1e-6, rtol=0)
        assert [cost.examples for cost in each.teaching.costs.values()] == [count]


def test_what_a_comparison_says_of_them(generating: Make, experiment: Callable[..., Any]) -> None:
    chosen = experiment("generation={generator: title}")
    assert [(p.stage, p.state) for p in describe(chosen)][3] == ("generate queries", "to do")
    job = Job(chosen, Display())
    job.check()
    job.prepare()
    job.generate()
    stages = {planned.stage: planned for planned in describe(chosen)}
    assert stages["generate queries"].state == "done"
    assert stages["generate queries"].what == "titles, 1 a document at most, of 60 documents"
    assert stages["train own"].what == "1 trial of 14 steps"
    assert "judged and generated queries, 22 steps" in job._batches(chosen.recipes[1])
    shared = job._shared_costs()
    assert [(cost.stage, cost.examples, cost.queries) for cost in shared] == [
        ("tokenizing", 50, ("judged",)),
        ("tokenizing", 60, ("judged", "both", "generated")),
        ("tokenizing", 72, ("both", "generated")),
        ("generation", 60, ("both", "generated")),
    ]


def test_the_report_charges_those_who_learn_from_them() -> None:
    import dataclasses

    from report.made_up import comparison  # type: ignore[import-not-found]

    from orchestrator.records import Cost
    from orchestrator.report.table import rows

    plain = comparison()
    first, second, *others = plain.results[1:]
    named = {first.name: "both", second.name: "generated"}
    results = [dataclasses.replace(each, queries=named.get(each.name, "judged")) for each in plain.results]
    costs = [
        Cost(stage="generation", device_seconds=30.0, queries=("both", "generated")),
        Cost(stage="generation", device_seconds=5.0, queries=("both",)),
    ]
    made = dataclasses.replace(plain, results=tuple(results), costs=(*plain.costs, *costs), generated_queries=1234)
    before = {row.name: row.all_seconds for row in rows(plain)}
    spent = {row.name: row.all_seconds - before[row.name] for row in rows(made)}
    assert spent[first.name] == pytest.approx(35.0)
    assert spent[second.name] == pytest.approx(30.0)
    assert all(spent[each.name] == 0 for each in others)
    said = wording.sentences(made)
    assert any(f"{first.name} learns from generated queries beside the judged ones; the 35.0 " in line for line in said)
    assert any(
        f"{second.name} learns from generated queries alone, which nobody asked; the 30.0" in line for line in said
    )
    assert " and 1,234 generated, " in wording.what_was_run(made)


BAD = {
    "{generator: titel}": r'must be "title", "salient", .* Did you mean "title"\?',
    "{generator: seq2seq}": r"generation.model: is missing. Add a folder or a hub id",
    "{generator: salient, model: x}": r"generation.model: says nothing of salient queries. It is for seq2seq, trained.",
    "{generator: title, per_document: 2}": r"generation.per_document: says nothing of title queries",
    "{generator: salient, training: {epochs: 2}}": r"generation.training: says nothing of salient queries",
    "{generator: seq2seq, model: x, prompt: 'ask'}": r'generation.prompt: must say where the document goes: "\{text\}"',
    "{generator: trained, training: {batch_size: 900 tokens}}": r"training.batch_size: a generator's batch is sized by",
    "{generator: trained, training: {queries: both}}": r"generation.training.queries: a generator is trained on judged",
    "null": r'recipes.2.training.queries: there are no generated queries \(and 1 more\). Add a section such as "gen',
}


@pytest.mark.parametrize("setting", BAD)
def test_bad_settings(generating: Make, setting: str) -> None:
    with pytest.raises(UserError, match=BAD[setting]):
        generating(setting)


def test_scores_that_are_written_know_nothing_of_them(generating: Make, tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text("")
    teacher = f"teacher={{scores: {{path: {tmp_path}/scores.jsonl, space: logit}}}}"
    row = "recipes=[{recipe: score-kl, training: {queries: both}}]"
    with pytest.raises(UserError, match=r"score-kl needs scores of generated queries, and the teacher's are written"):
        generating("{generator: title}", teacher, row)


def test_models_that_do_not_write(generating: Make, tiny_model: Path, tiny_bart: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^generation.model: .* cannot be loaded as a sequence-to-sequence model"):
        checks.collection(generating(f"{{generator: seq2seq, model: {tiny_model}}}"))
    with pytest.raises(UserError, match=r"^encoder.document_tokens: 41 tokens of a document are more than the 40"):
        checks.collection(generating(f"{{generator: seq2seq, model: {tiny_bart}}}", "encoder.document_tokens=41"))
    other = tiny.model("distilbert")
    other.save_pretrained(tmp_path / "distil")
    tiny_flow.copy_tokenizer(tiny_model, tmp_path / "distil")
    with pytest.raises(UserError, match=r"^generation.model: no decoder can be made of a distilbert encoder"):
        checks.collection(generating(f"{{generator: trained, model: {tmp_path}/distil}}"))
    too_large = "{generator: trained, training: {batch_size: 99}}"
    with pytest.raises(UserError, match=r"^generation.training.batch_size: a batch of 99 is more than the 32"):
        checks.collection(generating(too_large))


def test_collections_that_give_none(generating: Make, tmp_path: Path, tiny_collection: Path) -> None:
    folder = tmp_path / "untitled"
    shutil.copytree(tiny_collection, folder)
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    for line in lines:
        del line["title"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"^generation.generator: no document of .*untitled has a title. Set it to"):
        checks.collection(generating("{generator: title}", f"collection.path={folder}"))
    for line in lines:
        line["text"] = "docba docdo"
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"^generation: no document gave a query"):
        texts_of(generating("{generator: salient}", f"collection.path={folder}"))


def test_layers_that_are_kept(generating: Make) -> None:
    workspace = generating(TRAINED.replace("epochs: 30", "epochs: 1"), "encoder.layers=[1]")
    model = generator.load_generator(workspace.generation._train())
    assert (model.config.encoder.num_hidden_layers, model.config.decoder.num_hidden_layers) == (1, 1)
    assert texts_of(workspace)
