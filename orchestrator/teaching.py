"""What a teacher says of the batches of a training run: vectors of texts, scores of pairs; made once, read by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data import Batch, Rows, Stage, UserError, file_digest, pair_scores
from data.pair_scores import PairScores, Space
from losses import Signals
from orchestrator import embeddings, pair_scoring
from orchestrator.config_schema import TeacherSettings
from orchestrator.embeddings import Model, VectorsByRow, VectorSet
from orchestrator.encoder import Tower
from orchestrator.records import TEACHER, Cost
from orchestrator.runs import RunSpec, first_run, standing_for
from orchestrator.scorer import Scorer
from orchestrator.weights import ModelFolder

if TYPE_CHECKING:
    from orchestrator.workspace import Workspace

SCORES, QUERIES, DOCUMENTS = "teacher_scores", "teacher_queries", "teacher_documents"


@dataclass(frozen=True)
class Taught:
    """What a worker opens: how the teacher is known, as JSON, and the folders of the store by what is in them."""

    identity: str
    folders: tuple[tuple[str, Path], ...]
    space: Space
    encoder: tuple[Model, ModelFolder] | None = None  # of a bi-encoder
    dimension: int | None = None  # of its vectors


class Teaching:
    """The teacher of an experiment; `key` is the YAML path of its settings."""

    def __init__(self, workspace: Workspace, settings: TeacherSettings, key: str = "teacher") -> None:
        self._workspace, self._settings, self._key = workspace, settings, key

    def open(self, taught: Taught) -> None:
        """Take what the driver made: a worker reads the store and nothing else."""
        self.identity, self.folders, self.space = json.loads(taught.identity), dict(taught.folders), taught.space
        if taught.encoder:
            self.model, self.model_folder = taught.encoder
            self.encoder.model = self.model_folder
        if taught.dimension:
            self.dimension = taught.dimension

    @cached_property
    def space(self) -> Space:
        """What a score of the teacher is."""
        return self._workspace.experiment.space_of(self._settings) or self.encoder.space

    @property
    def asked(self) -> bool:
        """Whether some run learns from the teacher, or starts from it."""
        return bool(self.needs) or any(run.encoder.model == TEACHER for run in self._runs)

    @cached_property
    def needs(self) -> frozenset[str]:
        """What the losses of the experiment need of a teacher, all runs together."""
        return frozenset().union(*(run.teacher_needs for run in self._runs))

    @property
    def _runs(self) -> list[RunSpec]:
        """Those that learn from the queries of this workspace; of a search that draws, such as stand for all."""
        experiment, learned = self._workspace.experiment, self._workspace.learns
        runs = [run for row in experiment.recipes for run in standing_for(experiment, row)]
        return [run for run in runs if run.training.queries == learned]

    @cached_property
    def encoder(self) -> Workspace:
        """The collection and the store with a bi-encoder; with that of a row before it is trained."""
        encoder = self._workspace.experiment.encoder_of(self._settings)
        assert encoder is not None
        return self._workspace.with_encoder(encoder)

    @cached_property
    def run(self) -> RunSpec | None:
        """The run that a row teaches with; None where the teacher is none of the rows."""
        experiment = self._workspace.experiment
        row = experiment.teaching_row if self._settings.row else None
        return first_run(experiment, row) if row else None

    @property
    def ready(self) -> bool:
        """Whether there is a teacher to ask: one that is a row has to be trained first."""
        return self.run is None or self._workspace.trial(self.run).done

    @cached_property
    def model(self) -> Model:
        """The bi-encoder, to encode with; known before it is trained."""
        return self._workspace.trained_model(self.run) if self.run else self.encoder.starting_model

    @cached_property
    def model_folder(self) -> ModelFolder:
        """Where a student finds the bi-encoder's weights."""
        folder = self.encoder.model
        return replace(folder, path=self.model.folder, fingerprint=self.model.fingerprint) if self.run else folder

    @cached_property
    def dimension(self) -> int:
        """D' of its vectors."""
        return self.scorer.facts.dimension if self._settings.in_context else self.encoder.facts.dimension

    def dimension_for(self, run: RunSpec) -> int | None:
        """The dimension that a student's vectors have to have: the teacher's where they are set against each other."""
        matches = run.encoder.inherits or run.build_loss().matches_vectors
        return self.dimension if matches and self._settings.has_vectors else None

    @cached_property
    def scorer(self) -> Scorer:
        """A cross-encoder."""
        assert self._settings.cross_encoder is not None
        return Scorer(self._workspace, self._settings.cross_encoder, f"{self._key}.cross_encoder")

    def check(self) -> None:
        """Refuse a teacher that cannot be loaded, or that does not take the lengths.

        Raises:
            UserError: in either case.
        """
        if self._settings.scores is not None:
            if self._settings.scores.path is not None:
                self._score_file  # noqa: B018 - refuses a path that is no file
            elif self._workspace.collection.scores is None:
                what, mend = "the collection has no scores", "Add the path of a file with scores: path: …"
                raise UserError(what, where=f"{self._key}.scores", mend=mend)
        elif self._settings.encoder is not None:
            self.encoder.check_encoder(f"{self._key}.encoder")
        elif self._settings.cross_encoder is not None:
            self.scorer.check()

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """All that the teacher's answers depend on but the texts."""
        settings, training = self._settings, self._workspace.experiment.training
        if settings.scores is not None and settings.scores.path is None:
            return {"collection": self._workspace.collection.parts.get("scores", ""), "space": self.space}
        if settings.scores is not None:
            return {"file": file_digest(self._score_file), "space": self.space}
        if settings.encodes:
            how = training.model_dump(include={"precision", "token_budget"})
            if self.run:
                return {"row": self._workspace.trial(self.run).fingerprint, **how}
            return {"encoder": self.encoder.encoder_inputs, **how}
        return self.scorer.identity

    @property
    def _score_file(self) -> Path:
        assert self._settings.scores is not None
        assert self._settings.scores.path is not None
        file = Path(self._settings.scores.path).expanduser()
        if not file.is_file():
            raise UserError(f"{file} is no file", where=f"{self._key}.scores.path", mend=pair_scores.FORMS)
        return file

    @cached_property
    def folders(self) -> Mapping[str, Path]:
        """The finished stages by what is in them, made unless they are there."""
        if self._settings.encodes:
            sets = self.vector_sets
            return dict(zip(sets, self._workspace.embed(list(sets.values()), "the teacher encodes"), strict=True))
        workspace = self._workspace
        if self._settings.scores is not None:
            what, how = (workspace.store, workspace.collection), (self.space, self.pairs)
            if self._settings.scores.path is None:
                return {SCORES: pair_scores.own_scores(*what, *how, f"{self._key}.scores")}
            return {SCORES: pair_scores.read_scores(*what, self._score_file, *how, f"{self._key}.scores.path")}
        return {SCORES: self.scorer.score(self.pairs)}

    def make(self) -> None:
        """Ask the teacher, unless the store has the answers."""
        self.folders  # noqa: B018

    @property
    def trained_in_words(self) -> list[str]:
        """How good a cross-encoder is that was trained to teach."""
        cross = self._settings.cross_encoder
        if cross is None or cross.training is None:
            return []
        depth = cross.training.validation_depth
        what = f"BM25's first {depth} and the relevant documents of the validation queries"
        return [f"{cross.scorer} cross-encoder {cross.model}: nDCG@10 {self.scorer.quality:.4f} on {what}"]

    @property
    def _vectors(self) -> list[str]:
        """Whose vectors a bi-encoder has to make; its scores are their products."""
        return [each for each in (QUERIES, DOCUMENTS) if self.needs & {SCORES, each}]

    @property
    def vector_sets(self) -> dict[str, VectorSet]:
        """What a bi-encoder has to encode: the training queries, and, where a loss asks for more, all documents."""
        training, model = self._workspace.experiment.training, self.model
        budget, sets = training.token_budget, {}
        if QUERIES in self._vectors:
            sets[QUERIES] = VectorSet(model, self.encoder.tokens.queries, "fp32", budget, self._training_queries)
        if DOCUMENTS in self._vectors:
            sets[DOCUMENTS] = VectorSet(model.of_documents, self.encoder.tokens.documents, training.precision, budget)
        return sets

    @property
    def stages(self) -> list[Stage] | None:
        """Where the answers are kept; None where tokens or negatives have to be made to know it."""
        workspace = self._workspace
        if self._settings.encodes:
            if not all(stage.done for stage in self.encoder.token_stages.values()):
                return None
            return [each.stage(workspace.store) for each in self.vector_sets.values()]
        if not workspace.sources.ranked:
            return None
        scores = pair_scores.scores_stage(workspace.store, workspace.collection, self.identity, self.pairs)
        return [*(self.scorer.stages if self._settings.cross_encoder else []), scores]

    @property
    def in_words(self) -> str:
        """Who teaches, and what."""
        settings = self._settings
        if settings.encodes:
            texts = {QUERIES: "the training queries", DOCUMENTS: "all documents"}
            what = "vectors of " + (" and ".join(texts[each] for each in self._vectors) or "no texts")
            who = f"the row {settings.row}" if settings.row else settings.encoder and settings.encoder.model
            return f"{what}, {who}" + (f" (scores: {self.space})" if SCORES in self.needs else "")
        if settings.cross_encoder:
            source = settings.cross_encoder.model + (", trained here" if settings.cross_encoder.training else "")
        else:
            source = (settings.scores and settings.scores.path) or self._workspace.experiment.collection.path
        what = "scores and vectors" if settings.in_context else "scores"
        return f"{what} of the pairs that training meets, {source} ({self.space})"

    @cached_property
    def pairs(self) -> Rows:
        """The pairs that training meets, in all runs that learn from a teacher; ascending."""
        workspace = self._workspace

        def batches() -> Iterator[tuple[Rows, Rows]]:
            orders = {}  # what differs in nothing that a batch depends on has the same ones
            for run in self._runs:
                if run.teacher_needs:
                    training = run.training
                    by_tokens = run.encoder if training.batch_tokens else None
                    share, epochs = training.share, training.epochs
                    orders[training.batch_size, training.examples, share, epochs, by_tokens] = run
            seeds = workspace.experiment.further_seeds
            for run in [each for first in orders.values() for each in (first, *map(first.with_seed, seeds))]:
                plan = workspace.for_run(run).plan(run.training)
                for step in range(plan.total_steps):
                    batch = plan.batch(step)
                    yield batch.queries, _documents(batch)

        return pair_scores.distinct_pairs(batches(), workspace.collection.documents.num_rows)

    @property
    def taught(self) -> Taught:
        """What a worker needs."""
        encoder = (self.model, self.model_folder) if self._settings.encodes else None
        dimension = self.dimension if self._settings.has_vectors else None
        return Taught(json.dumps(self.identity), tuple(self.folders.items()), self.space, encoder, dimension)

    def inputs(self, run: RunSpec) -> Mapping[str, Any]:
        """What a run depends on here: nothing where its loss asks no teacher."""
        return {"teacher": self.identity} if run.teacher_needs else {}

    @property
    def documents(self) -> VectorsByRow:
        """The vectors of all documents."""
        return VectorsByRow(self.folders[DOCUMENTS])

    @property
    def tower(self) -> Tower:
        """The encoder of the documents, to be saved beside a student."""
        settings = self.encoder.settings
        return Tower(self.model.of_documents.load(), self.model_folder.of_documents.path, settings.document_tokens)

    @property
    def document_set(self) -> VectorSet:
        """The same, to be made: they are the index of a student that has the teacher's document encoder."""
        return self.vector_sets[DOCUMENTS]

    def signals(self, run: RunSpec) -> Callable[[Batch], Signals] | None:
        """What the teacher says of a batch; None where the loss asks nothing of it."""
        needs = run.teacher_needs
        if not needs:
            return None
        if not self._settings.encodes:
            return self._scored()
        queries = documents = None
        if needs & {SCORES, QUERIES}:
            queries = VectorsByRow(self.folders[QUERIES], self._training_queries)
        if needs & {SCORES, DOCUMENTS}:
            documents = self.documents

        def say(batch: Batch) -> Signals:
            q = torch.from_numpy(queries.take(batch.queries)) if queries else None
            d = torch.from_numpy(documents.take(_documents(batch))) if documents else None
            scores = torch.einsum("bd,bcd->bc", q, d) if SCORES in needs and q is not None and d is not None else None
            return Signals(scores, q, d, self.space)

        return say

    def _scored(self) -> Callable[[Batch], Signals]:
        folder, documents = self.folders[SCORES], self._workspace.collection.documents.num_rows
        scores = PairScores(folder)
        vectors = VectorsByRow(folder, scores.pairs) if self._settings.in_context else None

        def say(batch: Batch) -> Signals:
            pairs = pair_scores.pairs_of(batch.queries, _documents(batch), documents)
            q, d = torch.from_numpy(vectors.take(pairs)).chunk(2, dim=-1) if vectors else (None, None)
            return Signals(torch.from_numpy(scores.take(pairs)), q, d, self.space)

        return say

    @property
    def costs(self) -> dict[str, Cost]:
        """What it cost to ask the teacher, by stage of the store; nothing for scores that others made."""
        if self._settings.scores is not None:
            return {}
        if self._settings.encodes:
            return {folder.name: embeddings.cost([folder], "teaching") for folder in self.folders.values()}
        return {**self.scorer.costs, self.folders[SCORES].name: pair_scoring.cost(self.folders[SCORES])}

    @property
    def _training_queries(self) -> Rows:
        return np.unique(self._workspace.split[0].relevant.query_row)


def _documents(batch: Batch) -> Rows:
    """The documents of each query, its positive first: (B, 1 + K)."""
    return np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
