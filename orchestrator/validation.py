"""Validation during training: nDCG@10 of the validation queries over a pool of documents, never the test split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data import Qrels, Rows
from orchestrator.encoder import BiEncoder
from orchestrator.encoding import Encoding, TokenCount
from orchestrator.group import Group
from orchestrator.measures import Run, evaluate, judgments, parse
from orchestrator.search import search
from orchestrator.search.vectors import Floats
from orchestrator.training import Tokens, Validated

MEASURE = "nDCG@10"


@dataclass(frozen=True)
class Validator:
    """Scores an encoder. Every rank encodes its share of the rows, all see the same score.

    Args:
        qrels: judgments of the validation queries; all their relevant documents are in the pool.
        pool: rows of the documents that are searched, sorted.
        documents: their vectors (P, D), where the encoder in training does not make them.
    """

    tokens: Tokens
    qrels: Qrels
    pool: Rows
    encoding: Encoding
    documents: Floats | None = None

    def __call__(self, encoder: BiEncoder, group: Group) -> Validated:
        """nDCG@10, NaN where a vector is not finite, and what this rank encoded for it."""
        count = TokenCount()
        query_rows = np.unique(self.qrels.query_row)
        queries = self._embed(encoder, self.tokens.queries.take(query_rows), group, count)
        documents = self.documents
        if documents is None:
            documents = self._embed(encoder, self.tokens.documents.take(self.pool), group, count)
        if not (np.isfinite(queries).all() and np.isfinite(documents).all()):
            return Validated(float("nan"), count)  # a ranking of such vectors is none
        ids = [str(row) for row in self.pool]
        hits = search(queries, documents, depth=10, ids=ids)
        run = Run.of_hits([str(row) for row in query_rows], ids, hits.scores, hits.rows)
        score = evaluate(run, judgments(self.qrels, str, str), parse([MEASURE])).mean[MEASURE]
        return Validated(score, count)

    def _embed(self, encoder: BiEncoder, sequences: list, group: Group, count: TokenCount) -> np.ndarray:  # type: ignore[type-arg]
        own = slice(group.rank, None, group.size)
        vectors = torch.zeros(len(sequences), encoder.dimension, device=self.encoding.device)
        vectors[own] = self.encoding.embed(encoder, sequences[own], count)
        return group.merge(vectors).cpu().numpy()
