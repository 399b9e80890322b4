"""The final evaluation: encode the corpus with every model, search, measure. Nothing else reads the test split."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from data import Stage
from orchestrator import embeddings
from orchestrator.embeddings import Model, VectorSet
from orchestrator.encoder import pad_id, parameters
from orchestrator.encoding import Encoding, device
from orchestrator.measures import Run, evaluate, judgments, parse, write_per_query, write_trec_run
from orchestrator.records import Cost, EncoderFigures, IndexFigures, costs_from_json, to_json
from orchestrator.runs import RunSpec
from orchestrator.search import Tasks, search_shards
from orchestrator.workspace import Workspace

VERSION = 4
TIMED, WARM = 200, 10  # queries encoded one at a time, and before that together
RUN, PER_QUERY, MEASURED = "run.trec.gz", "per_query.json", "measured.json"


class Evaluated(NamedTuple):
    """A row's measures on the test split, the values per query, what it cost, and the folder with its run.

    `figures` are those of an approximate index; None for exact search. `encoder` are those of the queries' encoder.
    """

    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    cost: Cost
    folder: Path
    encoder: EncoderFigures
    figures: IndexFigures | None = None


class Vectors(NamedTuple):
    """What a row is evaluated with: the vectors of all documents, and those of the test queries.

    `inherited` says that the documents' are the teacher's, which were there before.
    """

    documents: VectorSet
    queries: VectorSet
    inherited: bool = False


def evaluate_all(workspace: Workspace, vectors: Mapping[str, Vectors]) -> dict[str, Evaluated]:
    """Evaluate each row on the test split; what the store holds already is not computed again."""
    stages = {row: run_stage(workspace, row, wanted) for row, wanted in vectors.items()}
    pending = [row for row in vectors if not stages[row].done]
    wanted = [each for row in pending for each in vectors[row][:2]]
    folders = workspace.embed(wanted, "encoding the corpus for the evaluation")
    for row, documents, queries in zip(pending, folders[::2], folders[1::2], strict=True):
        paid = [queries] if vectors[row].inherited else [documents, queries]
        stages[row].build(_measure_into(workspace, row, vectors[row].queries, documents, queries, paid))
    return {row: _read(stage.build(lambda partial: None)) for row, stage in stages.items()}


def untrained(workspace: Workspace) -> Vectors:
    """Those of the encoder that training starts from."""
    return _vectors(workspace, workspace.starting_model, _test_queries(workspace))


def teacher(workspace: Workspace) -> Vectors:
    """Those of the encoder that teaches."""
    assert workspace.teaching is not None
    return _vectors(workspace.teaching.encoder, workspace.teaching.model, _test_queries(workspace))


def trained(workspace: Workspace, run: RunSpec) -> Vectors:
    """Those of the encoder that a finished run left."""
    return _vectors(workspace.for_run(run), workspace.trained_model(run), _test_queries(workspace))


def _vectors(workspace: Workspace, model: Model, rows: npt.NDArray[np.int64]) -> Vectors:
    """Queries are few, and half of what bf16 costs in quality is lost at them, so they are encoded in fp32."""
    tokens, training = workspace.tokens, workspace.experiment.training
    queries = VectorSet(model, tokens.queries, "fp32", training.token_budget, rows)
    if workspace.settings.inherits:
        assert workspace.teaching is not None
        return Vectors(workspace.teaching.document_set, queries, inherited=True)
    return Vectors(VectorSet(model.of_documents, tokens.documents, training.precision, training.token_budget), queries)


def run_stage(workspace: Workspace, row: str, vectors: Vectors) -> Stage:
    """The run of a row on the test split, and its measures."""
    experiment = workspace.experiment
    inputs = {
        "embeddings": [wanted.stage(workspace.store).fingerprint for wanted in vectors[:2]],
        "split": workspace.collection.parts[f"qrels/{experiment.collection.test_split}"],
        "row": row,
        **experiment.evaluation.model_dump(),
    }
    return workspace.store.stage("runs", VERSION, inputs)


def _test_queries(workspace: Workspace) -> npt.NDArray[np.int64]:
    return np.unique(workspace.test_qrels.query_row)


def _measure_into(
    workspace: Workspace, row: str, asked: VectorSet, documents: Path, queries: Path, paid: Sequence[Path]
) -> Callable[[Path], None]:
    def measure(partial: Path) -> None:
        collection, settings = workspace.collection, workspace.experiment.evaluation
        vectors = embeddings.opened(queries)
        query_ids = collection.queries["query_id"].to_pylist()
        document_ids = collection.document_ids
        measures = parse(settings.measures)
        depth = settings.depth or max(measure.params.get("cutoff") or 1000 for measure in measures)
        tasks = Tasks.where_they_pay(len(vectors), vectors.shape[1], len(document_ids))
        found = search_shards(
            vectors, embeddings.stored(documents), depth, settings.index, ids=document_ids, tasks=tasks
        )
        rows = _test_queries(workspace)
        run = Run.of_hits([query_ids[row] for row in rows], document_ids, found.scores, found.rows)
        judged = judgments(workspace.test_qrels, query_ids.__getitem__, document_ids.__getitem__)
        measured = evaluate(run, judged, measures)
        write_trec_run(partial / RUN, run, tag=row)
        write_per_query(partial / PER_QUERY, measured.per_query)
        index = to_json(found.figures) if found.figures else None
        cost = embeddings.cost(paid, "evaluation", row)
        encoder = to_json(_encoder_figures(asked))
        value = {"mean": measured.mean, "index": index, "encoder": encoder, "cost": to_json(cost)}
        (partial / MEASURED).write_text(json.dumps(value), encoding="utf-8")

    return measure


def _read(folder: Path) -> Evaluated:
    measured = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    per_query = json.loads((folder / PER_QUERY).read_text(encoding="utf-8"))
    (cost,) = costs_from_json([measured["cost"]])
    figures = IndexFigures(**measured["index"]) if measured["index"] else None
    return Evaluated(measured["mean"], per_query, cost, folder, EncoderFigures(**measured["encoder"]), figures)


def _encoder_figures(queries: VectorSet) -> EncoderFigures:
    """Its parameters, and how long it takes here for a query alone."""
    where = device()
    encoder = queries.model.load().to(where)
    encoding = Encoding.on(where, "fp32", None, pad_id(queries.model.folder))
    rows = range(len(queries)) if queries.rows is None else queries.rows
    asked = queries.tokens.take(rows[:TIMED])
    encoding.embed(encoder, asked[:WARM])
    alone = []
    for query in asked:
        began = time.perf_counter()
        encoding.embed(encoder, [query]).cpu()
        alone.append(time.perf_counter() - began)
    median, high = np.percentile(alone, [50, 95])
    return EncoderFigures(parameters(encoder), float(median) * 1e3, float(high) * 1e3, torch.get_num_threads())
