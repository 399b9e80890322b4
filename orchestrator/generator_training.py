"""A generator trained on the judged queries: given a document that is relevant for a query, it learns to write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Batch, BatchPlan, Examples, Qrels, RandomNegatives, Shard
from losses import LossOutput
from orchestrator.config_schema import GeneratorTrainingSettings
from orchestrator.encoding import Encoding, TokenCount, chunks, device, pad
from orchestrator.generator import save_generator, warm_started, written_flops
from orchestrator.group import Group
from orchestrator.packed import Ids
from orchestrator.side_training import train_in
from orchestrator.training import Tokens, Validated

_PADDING = -100  # its label


class Pairs(NamedTuple):
    """Documents, and of each a query that it is relevant for, as token ids."""

    documents: list[Ids]
    queries: list[Ids]


class Written(NamedTuple):
    """How likely queries are: log-likelihoods summed over each query's tokens (n,), and the number of tokens (n,)."""

    log_likelihoods: Tensor
    tokens: Tensor


class TrainGenerator:
    """The worker: trains a generator in the folder of its only shard, and tells the learning curve.

    Loss and validation are mean log-likelihoods of a token of the queries given their documents, in nats a token, the
    loss with a minus before it.

    Args:
        folder: of the encoder that the generator is made of, with the tokenizer that `tokens` are of.
        layers: of the encoder, those that are kept.
        training, validation: judgments above 0.
    """

    def __init__(
        self,
        folder: Path,
        layers: tuple[int, ...] | None,
        tokens: Tokens,
        training: Qrels,
        validation: Qrels,
        settings: GeneratorTrainingSettings,
        seed: int,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        self._folder, self._layers, self._tokens, self._settings = folder, layers, tokens, settings
        self._plan = plan_of(training, len(tokens.documents), settings, seed)
        self._validation = validation

    def __call__(self, shard: Shard) -> pa.Table:
        torch.manual_seed(self._plan.seed)  # what the encoder's weights do not have
        model = warm_started(self._folder, self._layers, self._settings.dropout)
        settings = self._settings
        encoding = Encoding.on(device(), settings.precision, settings.token_budget, model.config.pad_token_id)
        learner = GeneratorLearner(self._plan, self._tokens, model, encoding)
        return train_in(
            shard,
            learner,
            self._plan,
            settings,
            encoding,
            validate=lambda: learner.validate(self._validation),
            save=lambda folder: save_generator(model, folder, self._folder),
            stage="generation",
        )


def plan_of(training: Qrels, documents: int, settings: GeneratorTrainingSettings, seed: int) -> BatchPlan:
    """The batches: queries and the documents that are relevant for them. Raises UserError where none is filled."""
    return BatchPlan(
        Examples.of(training),
        RandomNegatives(documents, training, 0),
        settings.batch_queries or 0,
        settings.epochs,
        seed,
        once_a_query=settings.examples == "queries",
    )


class GeneratorLearner:
    """A sequence-to-sequence model that learns to write the queries of batches, token by token."""

    def __init__(self, plan: BatchPlan, tokens: Tokens, model: Any, encoding: Encoding) -> None:
        self.modules: Mapping[str, nn.Module] = {"generator": model}
        self._plan, self._tokens, self._model, self._encoding = plan, tokens, model, encoding

    def learn(self, step: int, group: Group) -> tuple[LossOutput, TokenCount]:
        """The loss is the mean over the batch's tokens of minus their log-likelihood."""
        batch, count = self._plan.batch(step), TokenCount()
        pairs = self._pairs(batch)
        total = sum(len(query) - 1 for query in pairs.queries)
        per_example = torch.empty(len(pairs.queries), device=self._encoding.device)
        for rows, part in self._chunks(pairs):
            losses = -self._written(part, count).log_likelihoods / total
            losses.sum().backward()
            per_example[rows] = losses.detach() * len(pairs.queries)
        count.flops *= 3  # a backward pass is taken as two forward ones
        return LossOutput(per_example.mean(), per_example, {}), count

    @torch.no_grad()
    def validate(self, judgments: Qrels) -> Validated:
        """The mean log-likelihood of a token of the judged queries."""
        self._model.eval()
        count, found = TokenCount(), []
        rows = Batch(judgments.query_row, judgments.doc_row, np.empty((len(judgments), 0), np.int64))
        for _, part in self._chunks(self._pairs(rows)):
            found.append(self._written(part, count))
        self._model.train()
        tokens = sum(float(each.tokens.sum()) for each in found)
        return Validated(sum(float(each.log_likelihoods.sum()) for each in found) / tokens, count)

    def _pairs(self, batch: Batch) -> Pairs:
        return Pairs(self._tokens.documents.take(batch.positives), self._tokens.queries.take(batch.queries))

    def _chunks(self, pairs: Pairs) -> Iterator[tuple[Tensor, Pairs]]:
        lengths = np.array([len(d) + len(q) for d, q in zip(*pairs, strict=True)], np.int64)
        for rows in chunks(lengths, self._encoding.token_budget):
            part = Pairs([pairs.documents[row] for row in rows], [pairs.queries[row] for row in rows])
            yield torch.from_numpy(rows).to(self._encoding.device), part

    def _written(self, pairs: Pairs, count: TokenCount) -> Written:
        where, fill = self._encoding.device, self._encoding.pad_id
        ids, mask = (each.to(where) for each in pad(pairs.documents, fill))
        # A query's tokens are [CLS] q1 … qn [SEP]: after each comes the next.
        written, present = (each.to(where) for each in pad(pairs.queries, fill))
        labels = torch.where(present[:, 1:] > 0, written[:, 1:], _PADDING)
        with torch.autocast(where.type, torch.bfloat16, enabled=self._encoding.precision == "bf16"):
            logits = self._model(
                input_ids=ids,
                attention_mask=mask,
                decoder_input_ids=written[:, :-1],
                decoder_attention_mask=present[:, :-1],
                use_cache=False,
            ).logits
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=_PADDING, reduction="none"
        )
        losses = losses.view_as(labels)
        count.include(written_flops(self._model, sum(map(len, pairs.documents)), int((labels != _PADDING).sum())))
        return Written(-losses.sum(1), (labels != _PADDING).sum(1))
