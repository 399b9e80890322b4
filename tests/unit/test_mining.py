"""Negatives that an encoder mines: the ranking against a naive one, margins, another encoder, what is made once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flow
import torch
import transformers

from data import PooledNegatives, UserError
from data.store import manifest
from orchestrator import checks, shards
from orchestrator.config import load
from orchestrator.evaluation import evaluate_all, untrained
from orchestrator.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_cpu")

DEPTH = 40


@pytest.fixture
def mined(tmp_path: Path, tiny_collection: Path, tiny_model: Path) -> Any:
    path = tiny_flow.write_experiment(tmp_path, tiny_collection, tiny_model)

    def make(*settings: str) -> Workspace:
        if not settings or not settings[0].startswith("negatives={"):
            settings = ("negatives.source=mined", f"negatives.depth={DEPTH}", *settings)
        return Workspace(load(path, list(settings)))

    return make


def scores_of(workspace: Workspace, rows: Any) -> Any:
    """The score (Q, N) of every document for queries, in float64."""
    encoder, encoding = workspace.load_encoder(), workspace.encoding("fp32", None)
    queries = encoding.embed(encoder, workspace.tokens.queries.take(rows)).numpy()
    documents = encoding.embed(encoder, workspace.tokens.documents.take(range(60))).numpy()
    return queries.astype(np.float64) @ documents.astype(np.float64).T


def positives_of(workspace: Workspace) -> Any:
    mining = workspace.sources.mining(0)
    return mining.mined(workspace.store, workspace.collection, workspace.embed).positives


def pool_of(workspace: Workspace) -> tuple[Any, list[list[int]]]:
    negatives = workspace.negatives
    assert isinstance(negatives, PooledNegatives)
    (pool,) = negatives.pools
    return negatives.query_rows, [[int(row) for row in line if row >= 0] for line in pool.rows]


def test_the_ranking_is_the_naive_one(mined: Any) -> None:
    workspace = mined("negatives.skip=2")
    rows, pool = pool_of(workspace)
    training = workspace.split[0].relevant
    assert rows.tolist() == sorted(set(training.query_row.tolist()))
    relevant = dict(zip(training.query_row.tolist(), training.doc_row.tolist(), strict=True))
    scores = scores_of(workspace, rows)
    for query, line, found in zip(rows.tolist(), scores, pool, strict=True):
        ranked = np.argsort(-line, kind="stable")[2:DEPTH]
        assert found == [row for row in ranked.tolist() if row != relevant[query]]
    np.testing.assert_allclose(positives_of(workspace), [scores[i, relevant[q]] for i, q in enumerate(rows)])
    table = workspace.negatives.table(str, str).to_pylist()
    assert table[0] == {
        "query_id": str(rows[0]),
        "doc_id": str(pool[0][0]),
        "source": "mined",
        "rank": table[0]["rank"],
        "score": pytest.approx(scores[0, pool[0][0]], abs=1e-6),
    }


@pytest.mark.parametrize(
    ("setting", "most"),
    [
        ("negatives.absolute_margin=0.01", lambda positive: positive - 0.01),
        ("negatives.relative_margin=0.02", lambda positive: positive - 0.02 * abs(positive)),
    ],
)
def test_margins(mined: Any, setting: str, most: Any) -> None:
    workspace, all_of_them = mined(setting), mined()
    rows, pool = pool_of(workspace)
    positives = positives_of(workspace)
    scores = scores_of(workspace, rows)
    (_, whole) = pool_of(all_of_them)
    for line, found, candidates, positive in zip(scores, pool, whole, positives, strict=True):
        assert found == [row for row in candidates if line[row] <= most(positive)]
    assert sum(map(len, pool)) < sum(map(len, whole))
    assert len(list((workspace.store.root / "mined").glob("*/manifest.json"))) == 1  # another margin ranks nothing anew


def test_the_evaluation_reads_the_vectors_that_were_mined_with(mined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = mined()
    assert len(pool_of(workspace)[1]) == 32
    made: list[str] = []
    run_shards = shards.run_shards

    def counted(missing: Any, *arguments: Any, **named: Any) -> None:
        made.extend(str(shard.path) for shard in missing)
        run_shards(missing, *arguments, **named)

    monkeypatch.setattr(shards, "run_shards", counted)
    evaluate_all(workspace, {"untrained": untrained(workspace)})
    assert len(made) == 1  # the test queries
    documents, queries, search = workspace.sources.costs.values()
    assert [cost.stage for cost in (documents, queries, search)] == ["mining"] * 3
    assert [cost.examples for cost in (documents, queries, search)] == [60, 32, 0]
    (folder,) = (workspace.store.root / "mined").glob("*/manifest.json")
    assert search.wall_seconds == manifest(folder.parent)["seconds"] > 0


def test_another_encoder_mines(mined: Any, tmp_path: Path) -> None:
    other = tiny_flow.write_model(tmp_path / "other")
    encoder = f"negatives.encoder={{model: {other}, layers: [0], query_tokens: 16, document_tokens: 20}}"
    workspace = mined(encoder)
    assert workspace.sources.miners[0].tokens.documents.max_tokens == 20
    rows, pool = pool_of(workspace)
    scores = scores_of(workspace.sources.miners[0], rows)
    training = workspace.split[0].relevant
    relevant = dict(zip(training.query_row.tolist(), training.doc_row.tolist(), strict=True))
    for query, line, found in zip(rows.tolist(), scores, pool, strict=True):
        ranked = np.argsort(-line, kind="stable")[:DEPTH]
        assert found == [row for row in ranked.tolist() if row != relevant[query]]
    assert workspace.negatives.pools[0].source == f"mined by {other}"
    # A worker draws the same, from the store alone.
    opened = workspace.opened
    other.rename(tmp_path / "gone")
    there = Workspace.of(opened)
    for generator in ([3], [4]):
        drawn = [w.negatives.draw(rows, np.random.default_rng(generator)) for w in (workspace, there)]
        np.testing.assert_array_equal(*drawn)
    assert workspace.training_inputs != mined().training_inputs


def test_a_trial_names_how_its_negatives_were_encoded(mined: Any) -> None:
    # A row may train in another precision; what was mined is still the experiment's.
    precise, rough = (mined(f"training.precision={each}").sources.inputs for each in ("fp32", "bf16"))
    assert precise != rough
    plain = [mined("negatives={source: random}", f"training.precision={each}") for each in ("fp32", "bf16")]
    assert plain[0].sources.inputs == plain[1].sources.inputs


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("negatives.encoder={model: ./nowhere}", "negatives.encoder.model"),
        (
            "negatives.encoder={model: MODEL, query_tokens: 16, document_tokens: 1000}",
            "negatives.encoder.document_tokens",
        ),
        (
            "negatives={mix: [{source: random}, {source: mined, encoder: {model: ./nowhere}}]}",
            "negatives.mix.1.encoder.model",
        ),
    ],
)
def test_an_encoder_that_cannot_mine(mined: Any, tiny_model: Path, setting: str, where: str) -> None:
    workspace = mined(setting.replace("MODEL", str(tiny_model)))
    with pytest.raises(UserError) as error:
        checks.encoders(workspace)
    assert error.value.where == where


def test_negatives_of_a_file(mined: Any, tmp_path: Path) -> None:
    run = tmp_path / "others.trec"
    rows, pool = pool_of(mined())
    ids = mined().collection.queries["query_id"]
    lines = [
        f"{ids[row]} Q0 d{document} 0 {-place} t"
        for row, found in zip(rows, pool, strict=True)
        for place, document in enumerate(found)
    ]
    run.write_text("\n".join(lines))
    workspace = mined(f"negatives={{source: file, path: {run}, depth: 6, skip: 1}}")
    assert pool_of(workspace)[1] == [found[1:6] for found in pool]
    assert workspace.negatives.pools[0].source == "others.trec"
    inputs = workspace.training_inputs
    moved = run.rename(tmp_path / "moved.trec")
    there = Workspace.of(workspace.opened)  # a worker does not see the file
    drawn = [w.negatives.draw(rows, np.random.default_rng(1)) for w in (workspace, there)]
    np.testing.assert_array_equal(*drawn)
    assert there.training_inputs == inputs
    assert mined(f"negatives={{source: file, path: {moved}, depth: 6, skip: 1}}").training_inputs == inputs
    moved.write_text("\n".join(lines[1:]))
    assert mined(f"negatives={{source: file, path: {moved}, depth: 6, skip: 1}}").training_inputs != inputs


def logits_of(folder: Path, workspace: Workspace, rows: Any) -> Any:
    """The cross-encoder's score (Q, N) of every document for queries, one pair after the other."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    queries = [workspace.collection.queries["text"][row].as_py() for row in rows]
    found = []
    with torch.no_grad():
        for query in queries:
            pairs = tokens([query] * 60, workspace.collection.documents["text"].to_pylist(), return_tensors="pt")
            found.append(model(**pairs).logits[:, 0].numpy())
    return np.array(found)


@pytest.mark.parametrize(
    ("margins", "most"),
    [
        ("", lambda positive: positive),
        (", absolute_margin: 0.4", lambda positive: positive - 0.4),
        (", relative_margin: 0.3", lambda positive: positive - 0.3 * abs(positive)),
    ],
)
def test_a_cross_encoder_checks_what_is_mined(
    mined: Any, tiny_cross_encoder: Path, tmp_path: Path, margins: str, most: Any
) -> None:
    model = tmp_path / "checker"
    shutil.copytree(tiny_cross_encoder, model)
    check = f"negatives.check={{model: {model}, query_tokens: 12, document_tokens: 14{margins}}}"
    workspace, unchecked = mined(check, "negatives.per_query=1"), mined()
    assert not workspace.sources.ranked
    rows, pool = pool_of(workspace)
    assert workspace.sources.ranked
    (_, whole) = pool_of(unchecked)
    logits, positives = logits_of(tiny_cross_encoder, workspace, rows), workspace.split[0].relevant
    relevant = dict(zip(positives.query_row.tolist(), positives.doc_row.tolist(), strict=True))
    dropped = 0
    for query, line, found, all_of_it in zip(rows.tolist(), logits, pool, whole, strict=True):
        limit = most(line[relevant[query]])
        assert found == [row for row in all_of_it if line[row] <= limit]
        dropped += len(all_of_it) - len(found)
    assert dropped > 0
    *_, cost = workspace.sources.costs.values()
    assert (cost.stage, cost.examples) == ("mining", len(rows) * DEPTH + sum(len(line) == DEPTH for line in whole))
    # Its scores of the documents are the encoder's still, and a worker draws the same from the store alone.
    table = {
        (line["query_id"], line["doc_id"]): line["score"] for line in unchecked.negatives.table(str, str).to_pylist()
    }
    assert all(
        table[line["query_id"], line["doc_id"]] == line["score"]
        for line in workspace.negatives.table(str, str).to_pylist()
    )
    opened = workspace.opened
    model.rename(tmp_path / "gone")
    there = Workspace.of(opened)
    drawn = [w.negatives.draw(rows, np.random.default_rng(3)) for w in (workspace, there)]
    np.testing.assert_array_equal(*drawn)
    assert there.training_inputs == workspace.training_inputs
    assert workspace.training_inputs != unchecked.training_inputs


def test_a_checker_that_is_none_is_refused(mined: Any, tiny_model: Path) -> None:
    check = f"negatives.check={{model: {tiny_model}, query_tokens: 12, document_tokens: 14}}"
    with pytest.raises(UserError, match=r"^negatives.check.model: .* cannot be loaded as a cross-encoder"):
        checks.encoders(mined(check))
    with pytest.raises(UserError, match=r"^--set negatives.check: says nothing of random negatives"):
        mined("negatives={source: random}", check)


def test_what_bm25_took_is_in_the_ledger(mined: Any) -> None:
    workspace = mined("negatives={source: bm25, depth: 5}")
    workspace.negatives  # noqa: B018
    (cost,) = workspace.sources.costs.values()
    seconds = [manifest(path.parent)["seconds"] for path in workspace.store.root.glob("bm25*/*/manifest.json")]
    assert len(seconds) == 2
    assert (cost.stage, cost.examples, cost.wall_seconds) == ("mining", 32, pytest.approx(sum(seconds)))
