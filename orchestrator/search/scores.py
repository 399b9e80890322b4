"""Scores that are the same wherever a document lies, the order that they give, and how far faiss's are from them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from orchestrator.search.vectors import Floats, Part, Rows

Bounds = NDArray[np.float64]

warnings.filterwarnings("ignore", message="Sparse CSR tensor support")  # its tests hold it to a loop of dot products

_AT_ONCE = 1 << 21  # numbers of documents that are scored at once: 16 MB in float64
_TINY = float(np.finfo(np.float32).tiny)  # what a product that underflows may lose


def pair_scores(queries: Floats, part: Part, query: Rows, rows: Rows) -> Floats:
    """The inner product (P,) of each pair of a query and a row of the corpus: in float64, rounded once to float32.

    Pairs are taken by document, so that each is read once, in order. torch's cores work on them.
    """
    import torch

    order = np.argsort(rows)
    query, rows, scores = query[order], rows[order], np.empty(len(rows), np.float32)
    wide = torch.from_numpy(queries.astype(np.float64)).T
    step = max(1, _AT_ONCE // queries.shape[1])
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        first = np.flatnonzero(np.diff(some, prepend=-1))  # of the pairs of each document
        documents = torch.from_numpy(part.taken(some[first])).double()
        wanted = torch.sparse_csr_tensor(
            torch.from_numpy(np.append(first, len(some))),
            torch.from_numpy(query[start : start + step]),
            torch.zeros(len(some), dtype=torch.float64),
            (len(documents), len(queries)),
            check_invariants=False,
        )
        products = torch.sparse.sampled_addmm(wanted, documents, wide, beta=0.0)
        scores[start : start + step] = products.values().numpy()
    found = np.empty_like(scores)
    found[order] = scores
    return found


def ranked(scores: Floats, rows: Rows, ids: Sequence[str]) -> tuple[Floats, Rows]:
    """Each line of scores and rows (Q, K) by score, then by document id, both descending; row -1 comes last."""
    order = np.argsort(-scores, axis=1)
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    same = (scores[:, 1:] == scores[:, :-1]) & (rows[:, 1:] >= 0)
    lines = np.flatnonzero(same.any(axis=1))
    if len(lines):
        tied = np.zeros((len(lines), rows.shape[1]), bool)
        tied[:, 1:] |= same[lines]
        tied[:, :-1] |= same[lines]
        among, which = np.unique(rows[lines][tied], return_inverse=True)
        names = [ids[row] for row in among.tolist()]
        place = np.empty(len(names), np.int64)
        place[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        rank = np.zeros(tied.shape, np.int64)
        rank[tied] = place[which]
        rows[lines] = np.take_along_axis(rows[lines], np.lexsort((-rank, -scores[lines]), axis=1), axis=1)
    return scores, rows


def rounding(queries: Floats, documents: Floats, first: int) -> Bounds:
    """How far a float32 inner product can be from the true one, per query (Q,): (D + 2) u |q| max|d| with u = 2^-24.

    Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; it holds for every order of summation.
    Raises UserError where a vector is not finite; `first` is the row of the first document.
    """
    dimension = queries.shape[1]
    longest = _squares("document", documents, first).max()
    lengths = np.sqrt(_squares("query", queries, 0) * longest)
    bound: Bounds = (dimension + 2) * 2.0**-24 * lengths + dimension * _TINY
    return bound


def _squares(name: str, vectors: Floats, first: int) -> Bounds:
    """Squared lengths (N,), never too small."""
    import faiss

    dimension, rough = vectors.shape[1], np.empty(len(vectors), np.float32)
    lengths = faiss.fvec_norms_L2sqr  # type: ignore[attr-defined]
    lengths(faiss.swig_ptr(rough), faiss.swig_ptr(vectors), dimension, len(vectors))
    squares: Bounds = rough * (1 + (dimension + 2) * 2.0**-23) + dimension * _TINY
    for row in np.flatnonzero(~np.isfinite(squares)):  # too long for float32, or not a number
        squares[row] = np.square(vectors[row].astype(np.float64)).sum()
        if not np.isfinite(squares[row]):
            raise UserError(
                f"the embedding of {name} {first + int(row)} is not finite",
                mend="Training has diverged: lower training.learning_rate.",
            )
    return squares
