"""The cores that faiss may use, and when it multiplies matrices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# A block of queries with fewer numbers for each thread is searched faster by faiss's own loops than by its BLAS. faiss
# takes 128,000 whatever the threads, which suits 80 of them. https://github.com/facebookresearch/faiss/pull/5109
_LOOPS_BELOW = 800


def available() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    """Give faiss the cores: in a Ray worker OMP_NUM_THREADS is 1 and faiss would use one of them."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def multiplied(threads: int) -> Iterator[None]:
    """Have faiss multiply matrices where that is faster."""
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = min(before, _LOOPS_BELOW * threads)
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
