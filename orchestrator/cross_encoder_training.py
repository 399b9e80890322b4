"""A cross-encoder trained on the judged queries: it learns to score a relevant document above a query's negatives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import nn

from data import BatchPlan, Qrels, Rows, Shard
from losses import LossOutput
from orchestrator.config_schema import CrossEncoderTrainingSettings
from orchestrator.cross_encoder import CrossEncoder, Scoring, load_cross_encoder
from orchestrator.encoder import pad_id
from orchestrator.encoding import Encoding, TokenCount, device
from orchestrator.gradient_cache import GradientCache
from orchestrator.group import Group
from orchestrator.measures import Run, evaluate, judgments, parse
from orchestrator.side_training import train_in
from orchestrator.training import Tokens, Validated
from orchestrator.validation import MEASURE


class Candidates(NamedTuple):
    """Documents that validation queries are to rank: row pairs (n,), and the judgments."""

    query_rows: Rows
    doc_rows: Rows
    qrels: Qrels

    @classmethod
    def of(cls, qrels: Qrels, query_rows: Rows, ranked: Rows) -> Candidates:
        """The relevant documents of queries (Q,), and what is `ranked` (Q, depth) for them; -1 is no document."""
        relevant = qrels.relevant
        pairs = {(int(query), int(row)) for query, rows in zip(query_rows, ranked, strict=True) for row in rows}
        pairs |= set(zip(relevant.query_row.tolist(), relevant.doc_row.tolist(), strict=True))
        found = np.array(sorted(pair for pair in pairs if pair[1] >= 0), np.int64).reshape(-1, 2)
        return cls(found[:, 0], found[:, 1], qrels)


class TrainCrossEncoder:
    """The worker: trains a cross-encoder in the folder of its only shard, and tells the learning curve.

    The validation is nDCG@10 of the candidates, ranked anew.

    Args:
        folder: of the model that it starts from, an encoder or a cross-encoder, whose tokenizer `tokens` are of.
        plan: the batches: queries, their positives and their negatives.
    """

    def __init__(
        self,
        folder: Path,
        scoring: Scoring,
        tokens: Tokens,
        plan: BatchPlan,
        candidates: Candidates,
        settings: CrossEncoderTrainingSettings,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        self._folder, self._scoring, self._tokens, self._plan = folder, scoring, tokens, plan
        self._candidates, self._settings = candidates, settings

    def __call__(self, shard: Shard) -> pa.Table:
        settings, folder = self._settings, self._folder
        torch.manual_seed(self._plan.seed)  # what a new head starts with
        model = load_cross_encoder(folder, self._scoring, new_head=True, dropout=settings.dropout)
        encoding = Encoding.on(device(), settings.precision, settings.token_budget, pad_id(folder))
        learner = CrossEncoderLearner(self._plan, self._tokens, model, encoding, settings)
        return train_in(
            shard,
            learner,
            self._plan,
            settings,
            encoding,
            validate=lambda: learner.validate(self._candidates),
            save=lambda to: model.save(to, folder),
            stage="teaching",
        )


class CrossEncoderLearner:
    """A cross-encoder that learns to tell each query's positive from its negatives by a softmax over their scores:
    localized contrastive estimation (Gao et al. 2021, arXiv 2101.08751).
    """

    def __init__(
        self,
        plan: BatchPlan,
        tokens: Tokens,
        model: CrossEncoder,
        encoding: Encoding,
        settings: CrossEncoderTrainingSettings,
    ) -> None:
        self.modules: Mapping[str, nn.Module] = {"cross_encoder": model}
        self._plan, self._tokens, self._model, self._encoding = plan, tokens, model, encoding
        self._temperature, self._activation_tokens = settings.temperature, settings.activation_tokens

    def learn(self, step: int, group: Group) -> tuple[LossOutput, TokenCount]:
        """loss = mean over i of -log softmax_c(s(q_i, d_ic) / τ) at the positive, c over it and the K negatives."""
        batch = self._plan.batch(step)
        documents = np.concatenate([batch.positives[:, None], batch.negatives], axis=1)
        pairs = self._model.layout.pairs(self._tokens, np.repeat(batch.queries, documents.shape[1]), documents.ravel())
        cache = GradientCache(self._model, self._encoding, pairs, self._activation_tokens)
        scores = self._model.scores(cache.vectors).view(documents.shape)
        target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        per_example = F.cross_entropy(scores / self._temperature, target, reduction="none")
        per_example.mean().backward()
        cache.backward()
        accuracy = (scores.argmax(dim=1) == target).float().mean()
        return LossOutput(per_example.mean().detach(), per_example.detach(), {"accuracy": accuracy}), cache.count

    def validate(self, candidates: Candidates) -> Validated:
        """nDCG@10 of the validation queries."""
        count = TokenCount()
        pairs = self._model.layout.pairs(self._tokens, candidates.query_rows, candidates.doc_rows)
        scores = self._model.scores(self._encoding.embed(self._model, pairs, count)).tolist()
        scored: dict[str, dict[str, float]] = {}
        for query, document, score in zip(candidates.query_rows, candidates.doc_rows, scores, strict=True):
            scored.setdefault(str(query), {})[str(document)] = score
        found = evaluate(Run.of(scored), judgments(candidates.qrels, str, str), parse([MEASURE]))
        return Validated(found.mean[MEASURE], count)
