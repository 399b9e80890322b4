"""The validation part of the training judgments, and the documents that it is searched in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.collection import Qrels, Rows
from data.errors import UserError


def split_validation(qrels: Qrels, fraction: float, seed: int) -> tuple[Qrels, Qrels]:
    """Part training judgments by query into (training, validation); the same for the same seed.

    `fraction` (0 to 1, both excluded) of the queries that have a relevant document go to validation, rounded, but at
    least one query is on each side. Queries without one stay in training, since no measure can tell anything from them.
    Raises UserError where that cannot be done.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"{fraction} is not between 0 and 1",
            where="collection.validation",
            mend="0.1 keeps a tenth of the queries.",
        )
    queries = np.unique(qrels.relevant.query_row)
    if len(queries) < 2:
        raise UserError(
            f"{len(queries)} training queries have a relevant document: too few for a validation part",
            where="collection.validation",
            mend="Judge at least two queries.",
        )
    size = min(max(round(fraction * len(queries)), 1), len(queries) - 1)
    chosen = np.random.default_rng(seed).permutation(queries)[:size]
    validation = np.isin(qrels.query_row, chosen)
    return qrels.select(~validation), qrels.select(validation)


def share_of(qrels: Qrels, share: float, seed: int) -> Qrels:
    """The judgments of a share (above 0, 1 for all) of the queries, rounded, of one at least.

    The same for the same seed; those of a smaller share are among those of a larger.
    """
    if share >= 1:
        return qrels
    queries = np.random.default_rng(seed).permutation(np.unique(qrels.query_row))
    return qrels.select(np.isin(qrels.query_row, queries[: max(1, round(share * len(queries)))]))


def validation_pool(
    n_documents: int, validation: Qrels, size: int | None, ranked: Rows | None, seed: int
) -> npt.NDArray[np.int64]:
    """The document rows that validation queries are searched in: unique and sorted.

    All documents if `size` is None or no smaller than the corpus. Otherwise every relevant document of the validation
    queries, then the hardest others, taken rank by rank over the queries of `ranked` (Q, k) (BM25 ranks, padded with
    -1), then random ones until there are `size`. Raises UserError if the relevant ones alone are more than `size`.
    """
    if size is None or size >= n_documents:
        return np.arange(n_documents, dtype=np.int64)
    relevant = np.unique(validation.relevant.doc_row)
    if len(relevant) > size:
        raise UserError(
            f"a validation pool of {size:,} documents cannot hold the {len(relevant):,} relevant ones",
            mend=f"Make it {len(relevant):,} at least, or search all documents.",
        )
    hard = np.empty(0, np.int64) if ranked is None else ranked.T.ravel()  # rank 1 of every query, then rank 2, …
    others = np.random.default_rng(seed).permutation(n_documents)
    wanted = np.concatenate([relevant, hard[hard >= 0], others])
    documents, first = np.unique(wanted, return_index=True)
    return np.sort(documents[np.argsort(first)][:size])
