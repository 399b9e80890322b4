"""A cross-encoder of an experiment: what it is known by, whether it can be used, and its scores of pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import Rows, Stage, UserError
from orchestrator import cluster
from orchestrator.config_schema import CrossEncoderSettings, EncoderSettings
from orchestrator.cross_encoder import load_cross_encoder
from orchestrator.pair_scoring import PairScoring
from orchestrator.weights import ModelFolder, placed

if TYPE_CHECKING:
    from orchestrator.workspace import Workspace

VERSION = 1  # of the check


class Scorer:
    """Scores pairs of an experiment's collection.

    Args:
        settings: the model and the lengths of its texts.
    """

    def __init__(self, workspace: Workspace, settings: CrossEncoderSettings) -> None:
        self._workspace, self._settings = workspace, settings
        lengths = settings.model_dump(include={"model", "query_tokens", "document_tokens"})
        self._texts = workspace.with_encoder(EncoderSettings(**lengths))  # under its tokenizer

    @property
    def name(self) -> str:
        """What it is called in the experiment."""
        return self._settings.model

    @property
    def model(self) -> ModelFolder:
        """Its folder; a worker is told which."""
        return self._texts.model

    @model.setter
    def model(self, model: ModelFolder) -> None:
        self._texts.model = model

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """All that its scores depend on but the texts."""
        return {
            "cross_encoder": self.model.fingerprint,
            "tokenizer": self.model.tokenizer_fingerprint,
            **self._settings.model_dump(include={"query_tokens", "document_tokens"}),
            **self._workspace.experiment.training.model_dump(include={"precision", "token_budget"}),
        }

    def check(self, key: str) -> None:
        """Refuse a model that is no cross-encoder or does not take the lengths; `key` is the YAML path it is said at.

        Raises:
            UserError: in either case.
        """
        with placed(key):
            model = self.model
            inputs = {"weights": model.fingerprint, "tokenizer": model.tokenizer_fingerprint}

            def ask(partial: Path) -> None:
                found = load_cross_encoder(model.path)
                value = {"max_tokens": found.max_tokens, "longer": found.layout.longer}
                (partial / "encoder.json").write_text(json.dumps(value))

            folder = self._workspace.store.stage("cross-encoder-checks", VERSION, inputs).build(ask)
        found = json.loads((folder / "encoder.json").read_text())
        settings, longest = self._settings, found["max_tokens"]
        pair = settings.query_tokens + settings.document_tokens + found["longer"]
        if longest is not None and pair > longest:
            raise UserError(
                f"a pair has up to {pair} tokens, more than the {longest} that this cross-encoder takes",
                where=f"{key}.document_tokens",
                mend=f"Lower it to {longest - settings.query_tokens - found['longer']} or less.",
            )

    def stage(self, pairs: Rows) -> Stage:
        """Where the scores of pairs, ascending, are kept."""
        return self._scoring(pairs).stage(self._workspace.store, self._workspace.collection)

    def score(self, pairs: Rows, what: str = "the teacher scores") -> Path:
        """The folder with the scores, which are made on all of the machine or the cluster unless they are there."""
        workspace, available = self._workspace, cluster.resources()
        return self._scoring(pairs).scores(
            workspace.store,
            workspace.collection,
            lambda: self._texts.tokens,
            cluster.worker_size(workspace.experiment, available),
            available,
            workspace.connect,
            lambda done, total: workspace.on_shard(what, done, total),
        )

    def _scoring(self, pairs: Rows) -> PairScoring:
        training = self._workspace.experiment.training
        return PairScoring(self.identity, self.model.path, pairs, training.precision, training.token_budget)
