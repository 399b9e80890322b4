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


def check_batch_size(batch_size: int, examples: int, what: str = "") -> None:
    """Raises UserError where so many examples (or tokens, or what it is) make no whole batch."""
    if batch_size > examples:
        raise UserError(
            f"a batch of {batch_size:,}{what} is more than the {examples:,}{what} of the training examples"
            if what
            else f"a batch of {batch_size:,} is more than the {examples:,} training examples",
            where="training.batch_size",
            mend=f"Lower it to {examples:,}{what} or less.",
        )


class BatchPlan:
    """The batches of a training run.

    Every epoch goes through the examples in another order. Its last, short batch is dropped, so that every step has
    the same number of in-batch negatives, or of tokens; which examples that leaves out differs from epoch to epoch.

    Args:
        batch_size: examples in a batch; or tokens, where `tokens` is given.
        once_a_query: an epoch has each query once, with one of its relevant documents, drawn anew each time; otherwise
            it has each judgment once.
        tokens: of each example (N,). A batch then has as many examples as do not have more tokens together, and no
            fewer than `workers`, of which it is a multiple.

    Raises UserError if the examples do not fill a batch.
    """

    def __init__(
        self,
        examples: Examples,
        negatives: NegativeSource,
        batch_size: int,
        epochs: int,
        seed: int,
        *,
        once_a_query: bool = False,
        tokens: npt.NDArray[np.integer] | None = None,
        workers: int = 1,
    ) -> None:
        self.examples, self.negatives = examples, negatives
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self._tokens, self._workers = tokens, workers
        self._by_query = np.argsort(examples.query_rows, kind="stable") if once_a_query else None
        self._first, self._count = np.unique(np.sort(examples.query_rows), return_index=True, return_counts=True)[1:]
        self._epoch, self._order = -1, np.empty(0, np.int64)
        # Where each batch of an epoch begins in its order, and where the last one ends.
        if tokens is None:
            size = len(self._first) if once_a_query else len(examples)
            check_batch_size(batch_size, size)
            self._bounds = [np.arange(size // batch_size + 1) * batch_size] * epochs
        else:
            self._bounds = [self._filled(epoch) for epoch in range(epochs)]
        self.first_steps = np.cumsum([0, *(len(bounds) - 1 for bounds in self._bounds)])  # of each epoch, and the end

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return int(self.first_steps[-1])

    def epoch_of(self, step: int) -> int:
        """The epoch that a step is in."""
        return self._place(step)[0]

    def batch(self, step: int) -> Batch:
        """The batch of `step`, 0 … total_steps - 1. Raises IndexError beyond."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} of {self.total_steps}")
        epoch, local = self._place(step)
        start, end = self._bounds[epoch][local : local + 2]
        chosen = self._ordered(epoch)[start:end]
        queries = self.examples.query_rows[chosen]
        # A generator of its own for each step: what a step draws does not depend on the steps before it.
        negatives = self.negatives.draw(queries, np.random.default_rng([self.seed, epoch, step, 1]))
        return Batch(queries, self.examples.positive_rows[chosen], negatives)

    def examples_before(self, step: int) -> int:
        """How many examples the steps before this one have gone through, 0 … total_steps."""
        epoch, local = self._place(step)
        whole = sum(int(bounds[-1]) for bounds in self._bounds[:epoch])
        return whole if epoch == self.epochs else whole + int(self._bounds[epoch][local])

    def relevant(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Which documents of a whole batch are relevant for which query apart from its own positive: (B, B + B·K)."""
        mask = self.examples.relevant(batch.queries, batch.documents)
        np.fill_diagonal(mask, False)
        return mask

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and which of its steps it is."""
        epoch = int(np.searchsorted(self.first_steps, step, side="right")) - 1
        return epoch, step - int(self.first_steps[epoch])

    def _ordered(self, epoch: int) -> Rows:
        """The examples of an epoch in its order."""
        if epoch != self._epoch:  # kept, because it is the same for every step of the epoch
            rng = np.random.default_rng([self.seed, epoch])
            if self._by_query is None:
                self._order = rng.permutation(len(self.examples))
            else:
                turn = rng.permutation(len(self._first))
                drawn = np.random.default_rng([self.seed, epoch, 2]).integers(self._count)
                self._order = self._by_query[self._first + drawn][turn]
            self._epoch = epoch
        return self._order

    def _filled(self, epoch: int) -> Rows:
        """The bounds of an epoch's batches by tokens."""
        assert self._tokens is not None
        order, share = self._ordered(epoch), self._workers
        blocks = len(order) // share  # a batch is made of whole ones, so that the workers can share it
        cuts = np.arange(blocks + 1) * share
        total = np.concatenate([[0], np.cumsum(self._tokens[order], dtype=np.int64)])[cuts]
        check_batch_size(self.batch_size, int(total[-1]), " tokens")
        bounds = [0]
        while total[bounds[-1]] + self.batch_size <= total[-1]:
            end = int(np.searchsorted(total, total[bounds[-1]] + self.batch_size, side="right")) - 1
            bounds.append(max(end, bounds[-1] + 1))
            if bounds[-1] == blocks:
                break
        return cuts[bounds]
