"""The generated queries of an experiment: made once, filtered by a round trip, and kept beside those people asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import data
from data import Collection, Rows, Shard, Stage, UserError, generators, run_shards
from data.arrow import numbers, read_arrow, write_arrow
from data.collection import GENERATED
from data.generated import extended, refuse_generated, write_extended
from data.store import Json, manifest
from data.tokens import fast_tokenizer
from orchestrator import cluster, embeddings, generator, generator_training, shards, side_training
from orchestrator.config_schema import EncoderSettings, GenerationSettings
from orchestrator.embeddings import VectorSet
from orchestrator.journal import Entry
from orchestrator.records import Cost, costs_from_json, to_json
from orchestrator.search import Tasks, search_shards
from orchestrator.watch import Watch
from orchestrator.weights import ModelFolder, keep, locate, one_encoder, placed

if TYPE_CHECKING:
    from orchestrator.workspace import Workspace

VERSION = 1
FACTS = "facts.json"
_ROWS, _WEIGHTS = "rows.arrow", "weights.arrow"
_COSTS = "costs.json"


@dataclass(frozen=True)
class Facts:
    """What came of it: the documents that were read, what was written of them, the distinct queries that this is, and
    those that the round trip kept.
    """

    documents: int
    written: int
    distinct: int
    kept: int


class Generation:
    """Makes queries from the documents of a workspace's collection."""

    def __init__(self, workspace: Workspace, settings: GenerationSettings) -> None:
        self._workspace, self._settings = workspace, settings

    def check(self) -> None:
        """Refuse what cannot be, before anything is made.

        Raises:
            UserError: the model is none that writes, does not take the lengths, or is not to be had; the collection has
                no titles, or generated queries already.
        """
        settings, workspace = self._settings, self._workspace
        refuse_generated(workspace.collection)
        if settings.generator == "title" and workspace.collection.titles is None:
            what = f"no document of {workspace.experiment.collection.path} has a title"
            raise UserError(what, where="generation.generator", mend="Set it to salient.")
        if settings.writes:
            self._check_model()
        if settings.generator == "trained":
            relevant, documents = workspace.split[0].relevant, workspace.collection.documents.num_rows
            with placed("generation.training", "training"):
                generator_training.plan_of(relevant, documents, settings.training, workspace.experiment.seed)
        if settings.round_trip and settings.round_trip.encoder:
            self._checker.check_encoder("generation.round_trip.encoder")

    def _check_model(self) -> None:
        """Load the model, once; then the store knows what it takes."""
        encoder, trained = self._workspace.experiment.encoder, self._settings.generator == "trained"
        with placed("generation"):
            model = self._model
            inputs: dict[str, Json] = {
                "weights": model.fingerprint,
                "tokenizer": model.tokenizer_fingerprint,
                "decoder": trained,
            }

            def ask(partial: Path) -> None:
                found = generator.warm_started(model.path) if trained else generator.load_generator(model.path)
                (partial / "generator.json").write_text(json.dumps({"max_tokens": generator.read_limit(found)}))

            folder = self._workspace.store.stage("generator-checks", VERSION, inputs).build(ask)
        longest = json.loads((folder / "generator.json").read_text())["max_tokens"]
        if longest is not None and encoder.document_tokens > longest:
            raise UserError(
                f"{encoder.document_tokens} tokens of a document are more than the {longest} that this model reads",
                where="encoder.document_tokens",
                mend=f"Lower it to {longest} or less, or take another generation.model.",
            )

    @cached_property
    def _model(self) -> ModelFolder:
        """What writes, or what a generator that is trained is made of."""
        if self._settings.model is None:
            return one_encoder(self._workspace.model, self._workspace.experiment.encoder.model)
        return keep(one_encoder(locate(self._settings.model), self._settings.model), self._workspace.store)

    @property
    def in_words(self) -> str:
        """What is made of what."""
        settings, documents = self._settings, self._workspace.collection.documents.num_rows
        whose = f" by {settings.model}" if settings.model else ""
        kinds = {"title": "titles", "salient": "salient sentences", "inverse-cloze": "sentences drawn at random"}
        what = kinds.get(settings.generator) or (
            f"what a model made of {settings.model or self._workspace.experiment.encoder.model} and trained writes"
            if settings.generator == "trained"
            else f"what is written{whose}"
        )
        how_many = min(settings.documents or documents, documents)
        kept = f", kept if the document is among the first {settings.round_trip.depth}" if settings.round_trip else ""
        return f"{what}, {settings.per_document} a document at most, of {how_many:,} documents{kept}"

    @property
    def filtered(self) -> bool:
        """Whether there is a round trip."""
        return self._settings.round_trip is not None

    @property
    def done(self) -> bool:
        """Whether the store has the queries."""
        return self._stage(self.filtered).done

    @cached_property
    def collection(self) -> Collection:
        """The collection with the generated queries, which are made unless they are there.

        Raises:
            UserError: there are none.
        """
        make = self._filter if self.filtered else self._extend
        made = data.open_collection(self._stage(self.filtered).build(make))
        if not made.generated.any():
            what = "the round trip kept no query" if self.filtered else "no document gave a query"
            raise UserError(
                what, where="generation", mend="Take another generator, or raise generation.round_trip.depth."
            )
        return made

    @property
    def facts(self) -> Facts:
        """What came of it."""
        return self._facts(self.filtered)

    def _facts(self, filtered: bool) -> Facts:
        return Facts(**json.loads((self._stage(filtered).path / FACTS).read_text(encoding="utf-8")))

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How the queries came about, for those who read them elsewhere."""
        settings = self._settings.model_dump(mode="json", exclude_defaults=True)
        seed = self._workspace.experiment.seed
        return {"generator": self._settings.generator, **settings, "seed": seed, "counts": vars(self.facts)}

    @property
    def costs(self) -> dict[str, Cost]:
        """What it cost to train the generator, to write, and to encode for the round trip; by stage of the store."""
        kept = json.loads((self._stage(self.filtered).path / _COSTS).read_text(encoding="utf-8"))
        return dict(zip(kept, costs_from_json(kept.values()), strict=True))

    def _drafting_costs(self) -> dict[str, Cost]:
        if self._settings.writes:
            trained = [self._trained] if self._settings.generator == "trained" else []
            stages = [self._drafts, *trained]
            return {stage.fingerprint: shards.total(shards.costs(stage.path), "generation") for stage in stages}
        seconds, documents = manifest(self._drafts.path)["seconds"], len(self._rows)
        cost = Cost(stage="generation", device_seconds=seconds, wall_seconds=seconds, examples=documents)
        return {self._drafts.fingerprint: cost}

    def _stage(self, filtered: bool) -> Stage:
        """Where the collection with the queries is kept, before the round trip and behind it."""
        workspace, settings = self._workspace, self._settings
        inputs: dict[str, Json] = {"queries": workspace.collection.fingerprint, "drafts": self._drafts.fingerprint}
        if filtered:
            assert settings.round_trip is not None
            encoded = workspace.experiment.training.model_dump(include={"precision", "token_budget"})
            inputs["round_trip"] = {**self._checker.encoder_inputs, **encoded, "depth": settings.round_trip.depth}
        return workspace.store.stage("generated", VERSION, inputs)

    @cached_property
    def _rows(self) -> Rows:
        """The documents that are read."""
        workspace = self._workspace
        return generators.drawn_documents(workspace.collection, self._settings.documents, workspace.experiment.seed)

    @cached_property
    def _drafts(self) -> Stage:
        """Where what is written is kept, document by document."""
        workspace, settings = self._workspace, self._settings
        experiment = workspace.experiment
        inputs: dict[str, Json] = {
            "documents": workspace.collection.parts["documents"],
            **settings.model_dump(include={"generator", "per_document", "documents"}),
            "seed": experiment.seed,
        }
        if settings.writes:
            model = self._trained.fingerprint if settings.generator == "trained" else self._model.fingerprint
            inputs |= {"model": model, "tokenizer": self._model.tokenizer_fingerprint}
            inputs |= settings.model_dump(include={"prompt", "temperature", "top_k", "top_p"})
            inputs |= experiment.encoder.model_dump(include={"query_tokens", "document_tokens"})
            inputs["precision"] = experiment.training.precision
        else:
            inputs["titles"] = workspace.collection.parts.get("titles")
            inputs["tokens"] = workspace.token_stages["documents"].fingerprint
        return workspace.store.stage("drafted-queries", VERSION, inputs)

    @cached_property
    def _trained(self) -> Stage:
        """Where the generator is kept that is trained on the judged queries."""
        workspace, settings = self._workspace, self._settings
        experiment, parts = workspace.experiment, workspace.collection.parts
        tokens = self._tokenized.token_stages
        return workspace.store.stage(
            "generators",
            VERSION,
            {
                "weights": self._model.fingerprint,
                "layers": self._layers,
                **{field: stage.fingerprint for field, stage in tokens.items()},
                "judgments": parts[f"qrels/{experiment.collection.train_split}"],
                "validation": experiment.collection.validation,
                "training": settings.training.model_dump(exclude={"checkpoint_seconds", "queries"}),
                "seed": experiment.seed,
            },
        )

    @property
    def _layers(self) -> tuple[int, ...] | None:
        layers = self._workspace.experiment.encoder.layers if self._settings.model is None else None
        return None if layers is None else tuple(layers)

    @cached_property
    def _tokenized(self) -> Workspace:
        """The collection under the tokenizer of the encoder that the generator is made of."""
        encoder, model = self._workspace.experiment.encoder, self._settings.model
        if model is None:
            return self._workspace
        lengths = encoder.model_dump(include={"query_tokens", "document_tokens"})
        return self._workspace.with_encoder(EncoderSettings(model=model, **lengths))

    def _train(self) -> Path:
        """The folder of the generator."""
        workspace, settings = self._workspace, self._settings
        training, validation = (part.relevant for part in workspace.split)
        seed, stage = workspace.experiment.seed, self._trained

        def make(partial: Path) -> None:
            arguments: dict[str, Any] = {
                "folder": self._model.path,
                "layers": self._layers,
                "tokens": self._tokenized.tokens,
                "training": training,
                "validation": validation,
                "settings": settings.training,
                "seed": seed,
            }
            steps = generator_training.plan_of(training, len(arguments["tokens"].documents), settings.training, seed)
            with placed("generation.training", "training"), Watch([(steps.total_steps, stage)], self._on_entries):
                self._run([Shard(partial, 0)], generator_training.TrainGenerator, arguments, "the generator")
            side_training.gather(partial, steps.total_steps)

        return stage.build(make) / side_training.MODEL

    def _on_entries(self, total_steps: int, entries: list[Entry]) -> None:
        for entry in entries:
            self._workspace.on_shard("training the generator, step", entry.point.step, total_steps)

    def _run(self, wanted: list[Shard], worker: Any, arguments: Mapping[str, Any], what: str) -> None:
        workspace, available = self._workspace, cluster.resources()
        size = cluster.worker_size(workspace.experiment, available)
        report = lambda done, total: workspace.on_shard(what, done, total)  # noqa: E731
        shards.run(wanted, worker, arguments, size, available, workspace.connect, report)

    def _extend(self, partial: Path) -> None:
        """The collection before the round trip."""
        folder = self._drafts.build(self._write)
        drafts = pa.concat_tables([read_arrow(file) for file in shards.files(folder)]).combine_chunks()
        made = extended(self._workspace.collection, numbers(drafts["document"]), drafts["text"])
        count = int(made.generated.sum())
        self._keep(partial, made, Facts(len(self._rows), len(drafts), count, count), self._drafting_costs())

    def _write(self, partial: Path) -> None:
        settings, workspace = self._settings, self._workspace
        write_arrow(pa.table({"document": self._rows}), partial / _ROWS)
        arguments: dict[str, Any] = {
            "collection": workspace.collection.file("documents").parent,
            "rows": partial / _ROWS,
        }
        size = generator.SHARD_DOCUMENTS if settings.writes else generators.SHARD_DOCUMENTS
        numbered = [Shard(partial, number) for number in range(math.ceil(len(self._rows) / size))]
        if settings.writes:
            arguments |= {
                "folder": self._train() if settings.generator == "trained" else self._model.path,
                "writing": self._writing,
            }
            self._run(numbered, generator.WriteQueries, arguments, "writing queries")
            return
        weights = partial / _WEIGHTS if settings.generator == "salient" else None
        if weights and not weights.is_file():
            vocabulary = len(fast_tokenizer(workspace.model.of_documents.path))
            frequencies = generators.inverse_document_frequencies(workspace.tokens.documents, vocabulary)
            write_arrow(pa.table({"weight": frequencies}), weights)
        arguments |= {
            "kind": settings.generator,
            "per_document": settings.per_document,
            "tokenizer_folder": workspace.model.of_documents.path,
            "weights": weights,
            "seed": workspace.experiment.seed,
        }
        connect = workspace.connect if len(numbered) > 1 else None
        report = lambda done, total: workspace.on_shard("taking queries from documents", done, total)  # noqa: E731
        run_shards(numbered, generators.ExcerptQueries, arguments, connect=connect, on_shard=report)

    @property
    def _writing(self) -> generator.Writing:
        settings, experiment = self._settings, self._workspace.experiment
        return generator.Writing(
            prompt=settings.prompt,
            document_tokens=experiment.encoder.document_tokens,
            query_tokens=experiment.encoder.query_tokens,
            per_document=settings.per_document,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=experiment.seed,
            precision=experiment.training.precision,
        )

    @cached_property
    def _checker(self) -> Workspace:
        """The encoder of the round trip."""
        experiment, trip = self._workspace.experiment, self._settings.round_trip
        teacher = experiment.teacher.encoder if experiment.teacher else None
        encoder = (trip and trip.encoder) or teacher or experiment.encoder
        return self._workspace.with_encoder(encoder)

    def _vectors(self, made: Collection) -> tuple[VectorSet, VectorSet]:
        """Those of all documents, and of the generated queries."""
        checker, training = self._checker, self._workspace.experiment.training
        checker.collection = made
        model, budget = checker.starting_model, training.token_budget
        rows = np.flatnonzero(made.generated)
        return (
            VectorSet(model.of_documents, checker.tokens.documents, training.precision, budget),
            VectorSet(model, checker.tokens.queries, "fp32", budget, rows),
        )

    def _filter(self, partial: Path) -> None:
        """The collection with those queries alone for which the encoder finds their document."""
        workspace, trip = self._workspace, self._settings.round_trip
        assert trip is not None
        made = data.open_collection(self._stage(False).build(self._extend))
        wanted = self._vectors(made)
        folders = workspace.embed(wanted, "encoding for the round trip")
        vectors, documents = embeddings.opened(folders[1]), embeddings.stored(folders[0])
        tasks = Tasks.where_they_pay(len(vectors), vectors.shape[1], len(wanted[0]))
        found = search_shards(vectors, documents, min(trip.depth, len(wanted[0])), ids=made.document_ids, tasks=tasks)
        pairs = made.qrels[GENERATED]
        line = np.searchsorted(np.flatnonzero(made.generated), pairs.query_row)
        kept = pairs.select((found.rows[line] == pairs.doc_row[:, None]).any(axis=1))
        texts = made.queries["text"].take(pa.array(kept.query_row))
        left = extended(workspace.collection, kept.doc_row, texts)
        costs = {folder.name: embeddings.cost([folder], "generation") for folder in folders}
        facts = replace(self._facts(False), kept=int(left.generated.sum()))
        self._keep(partial, left, facts, {**self._drafting_costs(), **costs})

    def _keep(self, partial: Path, made: Collection, facts: Facts, costs: Mapping[str, Cost]) -> None:
        write_extended(self._workspace.collection, made, partial)
        (partial / FACTS).write_text(json.dumps(vars(facts)), encoding="utf-8")
        told = {name: to_json(cost) for name, cost in costs.items()}
        (partial / _COSTS).write_text(json.dumps(told), encoding="utf-8")
