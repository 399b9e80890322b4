"""The data order: which rows are in which step, as a pure function of (seed, epoch, step, batch size).

No worker, no restart and no call before it changes what `BatchPlan.batch(step)` returns. That is what makes resume in
mid-epoch exact, and the batches of eight workers those of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.collection import Qrels, Rows, matches
from data.errors import UserError
from data.negatives import NegativeSource


@dataclass(frozen=True, eq=False)
class Examples:
    """What is trained on: a query and a document that is relevant for it, (N,) rows each."""

    query_rows: Rows
    positive_rows: Rows

    @classmethod
    def of(cls, qrels: Qrels) -> Examples:
        """One example for each judgment above 0. Raises UserError if there is none."""
        relevant = qrels.relevant
        if not len(relevant):
            raise UserError("no training judgment is above 0", mend="Training needs relevant documents.")
        return cls(relevant.query_row, relevant.doc_row)

    def __len__(self) -> int:
        return len(self.query_rows)

    @cached_property
    def _by_query(self) -> Examples:
        order = np.argsort(self.query_rows, kind="stable")
        return Examples(self.query_rows[order], self.positive_rows[order])

    def relevant(self, query_rows: Rows, doc_rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of the documents (C,) are relevant for which of the queries (B,): (B, C)."""
        mask = np.zeros((len(query_rows), len(doc_rows)), np.bool_)
        query, pair = matches(self._by_query.query_rows, query_rows)
        order = np.argsort(doc_rows, kind="stable")
        pair_of_match, place = matches(doc_rows[order], self._by_query.positive_rows[pair])
        mask[query[pair_of_match], order[place]] = True
        return mask


class Batch(NamedTuple):
    """Rows of one step: queries (B,), positives (B,), negatives (B, K)."""

    queries: Rows
    positives: Rows
    negatives: Rows

    @property
    def documents(self) -> Rows:
        """The positives, then the negatives, those of the first query first: (B + B·K,)."""
        return np.concatenate([self.positives, self.negatives.ravel()])

    def balanced(self, sizes: npt.NDArray[np.integer], workers: int) -> Batch:
        """The same in an order in which all workers' parts have about the same size: dealt by it, to and fro.

        The sums of two parts differ by no more than the largest of `sizes` (B,) does from the smallest. Raises
        UserError if the batch cannot be cut into equal parts.
        """
        share = self._share(workers)
        hands = np.argsort(-sizes, kind="stable").reshape(share, workers)
        hands[1::2] = hands[1::2, ::-1]
        order = np.sort(hands, axis=0).T.ravel()
        return Batch(self.queries[order], self.positives[order], self.negatives[order])

    def part(self, rank: int, workers: int) -> Batch:
        """The share of worker `rank`: an equal, contiguous slice. Raises UserError if the batch cannot be so cut."""
        share = self._share(workers)
        part = slice(rank * share, (rank + 1) * share)
        return Batch(self.queries[part], self.positives[part], self.negatives[part])

    def _share(self, workers: int) -> int:
        size = len(self.queries)
        if size % workers:
            raise UserError(
                f"a batch of {size} cannot be shared equally by {workers} workers",
                where="training.batch_size, scaling.workers",
                mend="Make the batch size a multiple of the workers.",
            )
        return size // workers


def check_batch_size(batch_size: int, examples: int) -> None:
    """Raises UserError where so many examples make no whole batch."""
    if batch_size > examples:
        raise UserError(
            f"a batch of {batch_size:,} is more than the {examples:,} training examples",
            where="training.batch_size",
            mend=f"Lower it to {examples:,} or less.",
        )


class BatchPlan:
    """The batches of a training run.

    Every epoch goes through the examples in another order. Its last, short batch is dropped, so that every step has
    the same number of in-batch negatives; which examples that leaves out differs from epoch to epoch.
    Raises UserError if there are fewer examples than `batch_size`.
    """

    def __init__(self, examples: Examples, negatives: NegativeSource, batch_size: int, epochs: int, seed: int) -> None:
        check_batch_size(batch_size, len(examples))
        self.examples, self.negatives = examples, negatives
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the examples."""
        return len(self.examples) // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """The batch of `step`, 0 … total_steps - 1. Raises IndexError beyond."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} of {self.total_steps}")
        epoch, local = divmod(step, self.steps_per_epoch)
        chosen = self._permutation(epoch)[local * self.batch_size : (local + 1) * self.batch_size]
        queries = self.examples.query_rows[chosen]
        # A generator of its own for each step: what a step draws does not depend on the steps before it.
        negatives = self.negatives.draw(queries, np.random.default_rng([self.seed, epoch, step, 1]))
        return Batch(queries, self.examples.positive_rows[chosen], negatives)

    def relevant(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Which documents of a whole batch are relevant for which query apart from its own positive: (B, B + B·K)."""
        mask = self.examples.relevant(batch.queries, batch.documents)
        np.fill_diagonal(mask, False)
        return mask

    def _permutation(self, epoch: int) -> Rows:
        if epoch != self._epoch:  # kept, because it is the same for every step of the epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
            self._epoch = epoch
        return self._order
