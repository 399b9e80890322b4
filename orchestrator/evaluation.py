"""The final evaluation: encode the corpus with every model, search, measure. Nothing else reads the test split."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import data
from data import Stage, fingerprint, run_shards
from data.store import Json
from orchestrator import cluster
from orchestrator.cluster import Resources, WorkerSize
from orchestrator.encoder import BiEncoder, load_encoder
from orchestrator.encoding import TokenCount
from orchestrator.measures import Run, evaluate, judgments, parse, write_per_query, write_trec_run
from orchestrator.records import Cost, IndexFigures, costs_from_json, to_json
from orchestrator.search import Stored, Tasks, search_shards, table
from orchestrator.trial import MODEL
from orchestrator.workspace import Opened, Workspace

VERSION = 4  # of the embeddings
RUN_VERSION = 2
SHARD_DOCUMENTS = 1024
RUN, PER_QUERY, MEASURED = "run.trec.gz", "per_query.json", "measured.json"


@dataclass(frozen=True)
class Model:
    """A row's encoder. `folder` is a trained one's; None stands for the encoder that training starts from."""

    row: str
    folder: str | None
    fingerprint: str


class Evaluated(NamedTuple):
    """A row's measures on the test split, the values per query, what it cost, and the folder with its run.

    `figures` are those of an approximate index; None for exact search.
    """

    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    cost: Cost
    folder: Path
    figures: IndexFigures | None = None


def evaluate_all(
    workspace: Workspace,
    models: Sequence[Model],
    size: WorkerSize,
    available: Resources,
    connect: Callable[[], object],
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Evaluated]:
    """Evaluate each row's model on the test split; what the store holds already is not computed again.

    All models that have to encode do so in one pool of Ray Data actors, or in this process.
    """
    stages = {model.row: run_stage(workspace, model) for model in models}
    pending = [model for model in models if not stages[model.row].done]
    embeddings = {model.row: embeddings_stage(workspace, model) for model in pending}
    if missing := [model for model in pending if not embeddings[model.row].done]:
        documents = _document_shards(workspace)

        def encode(partials: Sequence[Path]) -> None:
            folders = {str(partial): model.folder for partial, model in zip(partials, missing, strict=True)}
            shards = [data.Shard(partial, number) for partial in partials for number in range(documents + 1)]
            workers = max(1, int(available.gpus)) if size.gpus else max(1, available.cpus // size.cpus)
            # Where one worker would have the whole of this machine, this process does its work: it has loaded all that
            # a worker would load first, and saves the start of one, 8 s.
            here = workers == 1 and not available.gpus and not cluster.remote()
            run_shards(
                shards,
                EncodeShard,
                {"opened": workspace.opened, "folders": folders, "threads": size.cpus},
                concurrency=workers,
                num_cpus=size.cpus,
                num_gpus=1 if size.gpus else 0,
                on_shard=on_shard,
                connect=None if here else connect,
            )

        data.build_together([embeddings[model.row] for model in missing], encode)
    for model in pending:
        stages[model.row].build(_measure_into(workspace, model, embeddings[model.row].path))
    return {row: _read(stage.build(lambda partial: None)) for row, stage in stages.items()}


def embeddings_stage(workspace: Workspace, model: Model) -> Stage:
    """The vectors of all documents and of the test queries under a model."""
    experiment = workspace.experiment
    inputs: dict[str, Json] = {
        "model": model.fingerprint,
        "documents": workspace.collection.parts["documents"],
        "queries": workspace.collection.parts["queries"],
        "split": workspace.collection.parts[f"qrels/{experiment.collection.test_split}"],
        "lengths": [experiment.encoder.query_tokens, experiment.encoder.document_tokens],
        "precision": experiment.training.precision,
        "token_budget": experiment.training.token_budget,
        "shard": SHARD_DOCUMENTS,
    }
    return workspace.store.stage("embeddings", VERSION, inputs)


def run_stage(workspace: Workspace, model: Model) -> Stage:
    """The run of a model on the test split, and its measures."""
    evaluation = workspace.experiment.evaluation.model_dump()
    inputs = {"embeddings": embeddings_stage(workspace, model).fingerprint, "row": model.row, **evaluation}
    return workspace.store.stage("runs", RUN_VERSION, inputs)


def untrained_model(workspace: Workspace, row: str) -> Model:
    """The encoder that training starts from, as a row."""
    return Model(row, None, fingerprint(dict(workspace.encoder_inputs)))


def trained_model(row: str, trial: Stage) -> Model:
    """The encoder that a finished trial left, as a row."""
    return Model(row, str(trial.path / MODEL), trial.fingerprint)


class EncodeShard:
    """What a Ray Data actor runs: the vectors of one shard of documents, or (the last shard) of the test queries."""

    def __init__(self, opened: Opened, folders: dict[str, str | None], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._workspace = Workspace.of(opened)
        self._folders = folders
        self._loaded: tuple[str, BiEncoder] | None = None

    def __call__(self, shard: data.Shard) -> pa.Table:
        began = time.perf_counter()
        encoder, count = self._encoder(str(shard.folder)), TokenCount()
        workspace, training = self._workspace, self._workspace.experiment.training
        if shard.number == _document_shards(workspace):
            precision = "fp32"  # queries are few, and half of what bf16 costs in quality is lost at them
            sequences = workspace.tokens.queries.take(_test_queries(workspace))
        else:
            precision = training.precision
            end = min((shard.number + 1) * SHARD_DOCUMENTS, workspace.collection.documents.num_rows)
            sequences = workspace.tokens.documents.take(np.arange(shard.number * SHARD_DOCUMENTS, end))
        encoding = workspace.encoding(precision, training.token_budget)
        vectors = encoding.embed(encoder.to(encoding.device), sequences, count).cpu().numpy()
        wall = time.perf_counter() - began
        import torch

        devices = 1 if encoding.device.type == "cuda" else torch.get_num_threads()
        cost = Cost(
            stage="evaluation",
            device=encoding.device.type,
            devices=devices,
            device_seconds=wall * devices,
            wall_seconds=wall,
            examples=len(sequences),
            tokens=count.tokens,
            flops=count.flops,
        )
        return table(vectors).replace_schema_metadata({"cost": json.dumps(to_json(cost))})

    def _encoder(self, folder: str) -> BiEncoder:
        """The model of a stage's folder; the one before it is let go."""
        if self._loaded is None or self._loaded[0] != folder:
            trained, config = self._folders[folder], self._workspace.experiment.encoder
            if trained is None:
                encoder = self._workspace.load_encoder()
            else:
                encoder = load_encoder(Path(trained), pooling=config.pooling, normalize=config.normalize)
            self._loaded = folder, encoder
        return self._loaded[1]


def _document_shards(workspace: Workspace) -> int:
    documents: int = workspace.collection.documents.num_rows
    return math.ceil(documents / SHARD_DOCUMENTS)


def _test_queries(workspace: Workspace) -> npt.NDArray[np.int64]:
    return np.unique(workspace.test_qrels.query_row)


class DocumentIds(Sequence[str]):
    """The ids of a collection's documents, read from its file when they are asked for; a task opens it by its path."""

    def __init__(self, collection: Path) -> None:
        self._collection = collection
        self._column = data.open_collection(collection).documents["doc_id"]

    def __reduce__(self) -> tuple[type[DocumentIds], tuple[Path]]:
        return DocumentIds, (self._collection,)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[int(row)].as_py()


def _measure_into(workspace: Workspace, model: Model, folder: Path) -> Callable[[Path], None]:
    def measure(partial: Path) -> None:
        collection, settings = workspace.collection, workspace.experiment.evaluation
        assert collection.folder is not None
        shards, cost = _vectors(folder, model.row)
        queries = shards[-1].open()
        query_ids = collection.queries["query_id"].to_pylist()
        document_ids = DocumentIds(collection.folder)
        measures = parse(settings.measures)
        depth = settings.depth or max(measure.params.get("cutoff") or 1000 for measure in measures)
        pays = Tasks.pay(len(queries), queries.shape[1], len(document_ids))
        tasks = Tasks.of_cluster() if pays and cluster.connected() else None
        found = search_shards(queries, shards[:-1], depth, settings.index, ids=document_ids, tasks=tasks)
        rows = _test_queries(workspace)
        run = Run.of_hits([query_ids[row] for row in rows], document_ids, found.scores, found.rows)
        judged = judgments(workspace.test_qrels, query_ids.__getitem__, document_ids.__getitem__)
        measured = evaluate(run, judged, measures)
        write_trec_run(partial / RUN, run, tag=model.row)
        write_per_query(partial / PER_QUERY, measured.per_query)
        index = to_json(found.figures) if found.figures else None
        value = {"mean": measured.mean, "index": index, "cost": to_json(cost)}
        (partial / MEASURED).write_text(json.dumps(value), encoding="utf-8")

    return measure


def _vectors(folder: Path, row: str) -> tuple[list[Stored], Cost]:
    """The shards of a finished stage, documents first and queries last, and what they cost together."""
    shards, costs = [], []
    for path in sorted(folder.glob("part-*.arrow")):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        shards.append(Stored.of(path))
        costs.append(Cost(**json.loads(reader.schema.metadata[b"cost"])))
    total: dict[str, Any] = {
        name: sum(getattr(cost, name) for cost in costs)
        for name in ("device_seconds", "wall_seconds", "examples", "tokens", "flops")
    }
    return shards, Cost(stage="evaluation", recipe=row, device=costs[0].device, devices=costs[0].devices, **total)


def _read(folder: Path) -> Evaluated:
    measured = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    per_query = json.loads((folder / PER_QUERY).read_text(encoding="utf-8"))
    (cost,) = costs_from_json([measured["cost"]])
    figures = IndexFigures(**measured["index"]) if measured["index"] else None
    return Evaluated(measured["mean"], per_query, cost, folder, figures)
