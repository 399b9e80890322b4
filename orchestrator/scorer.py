"""A cross-encoder of an experiment: trained if it has to be, whether it can be used, and its scores of pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data import Rows, Shard, Stage, UserError
from data.store import Json
from orchestrator import cluster, shards, side_training
from orchestrator.config_schema import (
    CrossEncoderSettings,
    CrossEncoderTrainingSettings,
    EncoderSettings,
    TeachingCrossEncoderSettings,
)
from orchestrator.cross_encoder import POOLED, Scoring, load_cross_encoder
from orchestrator.cross_encoder_training import Candidates, TrainCrossEncoder
from orchestrator.journal import Entry
from orchestrator.pair_scoring import PairScoring
from orchestrator.records import Cost
from orchestrator.watch import Watch
from orchestrator.weights import ModelFolder, one_encoder, placed

if TYPE_CHECKING:
    from orchestrator.workspace import Workspace

CHECK_VERSION, TRAINING_VERSION = 2, 1
_BM25_DEPTH = 100  # what is asked of it elsewhere too


class Facts(NamedTuple):
    """What loading it tells: the most tokens of a pair, None where any number; how many more a pair has than its texts;
    and how long the vectors of dual pooling are.
    """

    max_tokens: int | None
    longer: int
    dimension: int


class Scorer:
    """Scores pairs of an experiment's collection.

    Args:
        settings: the model and the lengths of its texts; of one that teaches, how it scores and is trained.
        key: their YAML path.
    """

    def __init__(self, workspace: Workspace, settings: CrossEncoderSettings, key: str) -> None:
        self._workspace, self._settings, self._key = workspace, settings, key
        self._scoring, self._training = POOLED, None
        if isinstance(settings, TeachingCrossEncoderSettings):
            self._scoring, self._training = Scoring(settings.scorer, settings.normalize), settings.training
        lengths = settings.model_dump(include={"model", "query_tokens", "document_tokens"})
        self._encoder = EncoderSettings(**lengths)
        self._texts = workspace.with_encoder(self._encoder)  # under its tokenizer

    @property
    def name(self) -> str:
        """What it is called in the experiment."""
        return self._settings.model

    @property
    def model(self) -> ModelFolder:
        """Its folder, as it is before it is trained; a worker is told which."""
        return self._texts.model

    @model.setter
    def model(self, model: ModelFolder) -> None:
        self._texts.model = model

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """All that its scores depend on but the texts."""
        return {
            "cross_encoder": self._trained.fingerprint if self._training else self.model.fingerprint,
            "tokenizer": self.model.tokenizer_fingerprint,
            **self._settings.model_dump(include={"query_tokens", "document_tokens"}),
            **self._workspace.experiment.training.model_dump(include={"precision", "token_budget"}),
            **({} if self._scoring == POOLED else self._scoring._asdict()),
        }

    def check(self) -> None:
        """Refuse a model that is no cross-encoder or does not take the lengths, and a training without a batch.

        Raises:
            UserError: in any of these cases.
        """
        settings, longest = self._settings, self.facts.max_tokens
        pair = settings.query_tokens + settings.document_tokens + self.facts.longer
        if longest is not None and pair > longest:
            raise UserError(
                f"a pair has up to {pair} tokens, more than the {longest} that this cross-encoder takes",
                where=f"{self._key}.document_tokens",
                mend=f"Lower it to {longest - settings.query_tokens - self.facts.longer} or less.",
            )
        if self._training:
            with placed(f"{self._key}.training", "training"):
                self._judged.steps(self._training)

    @cached_property
    def facts(self) -> Facts:
        """What has to be known of it. It is loaded to be asked, once; then the store has it."""
        new_head = self._training is not None
        with placed(self._key):
            model = one_encoder(self.model, self.name)
            inputs: dict[str, Json] = {
                "weights": model.fingerprint,
                "tokenizer": model.tokenizer_fingerprint,
                "scorer": self._scoring.scorer,
                "new_head": new_head,
            }

            def ask(partial: Path) -> None:
                found = load_cross_encoder(model.path, self._scoring, new_head=new_head)
                told = Facts(found.max_tokens, found.layout.longer, found.config.hidden_size)
                (partial / "encoder.json").write_text(json.dumps(told._asdict()))

            folder = self._workspace.store.stage("cross-encoder-checks", CHECK_VERSION, inputs).build(ask)
        return Facts(**json.loads((folder / "encoder.json").read_text()))

    def stage(self, pairs: Rows) -> Stage:
        """Where the scores of pairs, ascending, are kept."""
        return self._pair_scoring(pairs, self.model.path).stage(self._workspace.store, self._workspace.collection)

    def score(self, pairs: Rows, what: str = "the teacher scores") -> Path:
        """The folder with the scores, which are made on all of the machine or the cluster unless they are there."""
        if (stage := self.stage(pairs)).done:
            return stage.path
        workspace, available = self._workspace, cluster.resources()
        folder = self._train(self._training) if self._training else self.model.path
        return self._pair_scoring(pairs, folder).scores(
            workspace.store,
            workspace.collection,
            lambda: self._texts.tokens,
            cluster.worker_size(workspace.experiment, available),
            available,
            workspace.connect,
            lambda done, total: workspace.on_shard(what, done, total),
        )

    def _pair_scoring(self, pairs: Rows, folder: Path) -> PairScoring:
        training = self._workspace.experiment.training
        return PairScoring(self.identity, folder, pairs, training.precision, training.token_budget, self._scoring)

    @property
    def costs(self) -> dict[str, Cost]:
        """What its training cost, by stage of the store."""
        if not self._training:
            return {}
        return {self._trained.fingerprint: shards.total(shards.costs(self._trained.path), "teaching")}

    @property
    def quality(self) -> float | None:
        """What the weights that are kept had in validation; None where it is not trained here."""
        if not self._training:
            return None
        return float(json.loads((self._trained.path / side_training.MODEL / side_training.SCORE).read_text()))

    @property
    def stages(self) -> list[Stage]:
        """Where it is kept once it is trained."""
        return [self._trained] if self._training else []

    @property
    def _judged(self) -> Workspace:
        """What it is trained on: the queries that people asked."""
        return self._workspace.learning_from("judged")

    @cached_property
    def _judged_texts(self) -> Workspace:
        """The same under its tokenizer."""
        return self._judged.with_encoder(self._encoder)

    @cached_property
    def _trained(self) -> Stage:
        """Where it is kept, named by all that it depends on."""
        assert self._training is not None
        workspace, parts = self._judged, self._judged.collection.parts
        collection = workspace.experiment.collection
        return workspace.store.stage(
            "cross-encoders",
            TRAINING_VERSION,
            {
                "weights": self.model.fingerprint,
                **{field: stage.fingerprint for field, stage in self._judged_texts.token_stages.items()},
                "judgments": parts[f"qrels/{collection.train_split}"],
                "validation": collection.validation,
                "negatives": workspace.sources.inputs,
                "scoring": self._scoring._asdict(),
                "training": self._training.model_dump(exclude={"checkpoint_seconds", "queries"}),
                "seed": workspace.experiment.seed,
            },
        )

    def _train(self, settings: CrossEncoderTrainingSettings) -> Path:
        """The folder of the trained model."""
        workspace, stage = self._judged, self._trained

        def make(partial: Path) -> None:
            plan, validation = workspace.plan(settings), workspace.split[1]
            queries = np.unique(validation.query_row)
            ranked = workspace.bm25(queries, _BM25_DEPTH)[:, : settings.validation_depth]
            arguments: dict[str, Any] = {
                "folder": self.model.path,
                "scoring": self._scoring,
                "tokens": self._judged_texts.tokens,
                "plan": plan,
                "candidates": Candidates.of(validation, queries, ranked),
                "settings": settings,
            }
            available = cluster.resources()
            size = cluster.worker_size(workspace.experiment, available)
            watch = Watch([(plan.total_steps, stage)], self._on_entries)
            with placed(f"{self._key}.training", "training"), watch:
                shards.run([Shard(partial, 0)], TrainCrossEncoder, arguments, size, available, workspace.connect)
            side_training.gather(partial, plan.total_steps)

        return stage.build(make) / side_training.MODEL

    def _on_entries(self, total_steps: int, entries: list[Entry]) -> None:
        for entry in entries:
            self._workspace.on_shard("training the cross-encoder, step", entry.point.step, total_steps)
