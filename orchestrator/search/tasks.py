"""Exact search by Ray tasks: each maps its part of the corpus from the store; queries go, candidates come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data import UserError
from data.machines import machines
from data.travel import pack, unpack
from orchestrator import cluster
from orchestrator.search.exact import Candidates, Here, Hits, exact, nearest
from orchestrator.search.scores import pair_scores
from orchestrator.search.threads import faiss_threads
from orchestrator.search.vectors import Floats, Part, Rows

_PAYING = 5e12  # floating-point operations


class Tasks(NamedTuple):
    """How many tasks search side by side, each with so many CPUs."""

    number: int
    cpus: int

    @staticmethod
    def pay(queries: int, dimension: int, documents: int) -> bool:
        """Whether a search takes so long, half a minute on two cores, that a start of the tasks' workers is nothing."""
        return 2.0 * queries * dimension * documents >= _PAYING

    @classmethod
    def where_they_pay(cls, queries: int, dimension: int, documents: int) -> Tasks | None:
        """Those of the cluster that this process is connected to; None where the search is better done right here."""
        return cls.of_cluster() if cls.pay(queries, dimension, documents) and cluster.connected() else None

    @classmethod
    def of_cluster(cls) -> Tasks:
        """As few as use the connected cluster: one a machine, of as many CPUs as the smallest that has any."""
        cpus = [int(node.get("CPU", 0)) for node in machines()]
        size = min(n for n in cpus if n)
        return cls(sum(n // size for n in cpus), size)


def over_ray(queries: Floats, parts: Sequence[Part], depth: int, ids: Sequence[str], cpus: int) -> Hits:
    """The `depth` best documents of each query, by a Ray task of so many CPUs for each part of the corpus.

    One part is searched to the end where it is; candidates of several are merged in this process.
    """
    if len(parts) > 1:
        return exact(queries, _OverRay(parts, cpus), depth, ids)
    import ray

    call = _task(cpus).remote(_alone, cpus, ray.put(queries), pack(parts[0]), depth, ray.put(pack(ids)), cpus)
    ((_, hits),) = _as_they_end([call])
    return Hits(*hits)


class _OverRay:
    """Ray tasks search, one for each part."""

    def __init__(self, parts: Sequence[Part], cpus: int) -> None:
        self._parts, self._cpus = parts, cpus
        self._packed = [pack(part) for part in parts]
        self._remote = _task(cpus).remote

    def nearest(self, queries: Floats, depth: int, ids: Sequence[str]) -> Iterator[Candidates]:
        """The candidates of each part as its task ends: this process holds one at a time."""
        import ray

        shared, names = ray.put(queries), ray.put(pack(ids))
        calls = [self._remote(nearest, self._cpus, shared, part, depth, names, self._cpus) for part in self._packed]
        for _, found in _as_they_end(calls):
            yield found

    def scores(self, queries: Floats, query: Rows, rows: Rows) -> Floats:
        """Each part scores the pairs whose documents it has."""
        import ray

        shared, scores = ray.put(queries), np.empty(len(rows), np.float32)
        bounds = [part.starts[0] for part in self._parts[1:]]
        owner = np.searchsorted(bounds, rows, side="right")
        calls, places = [], []
        for number, part in enumerate(self._packed):
            if len(place := np.flatnonzero(owner == number)):
                calls.append(self._remote(pair_scores, self._cpus, shared, part, query[place], rows[place]))
                places.append(place)
        for number, found in _as_they_end(calls):
            scores[places[number]] = found
        return scores


def _task(cpus: int) -> Any:
    import ray

    return ray.remote(num_cpus=cpus)(_call)


def _call(function: Callable[..., Any], cpus: int, *arguments: Any) -> Any:
    """What a task runs: the function, with the CPUs that the task was given."""
    with faiss_threads(cpus):
        return function(*map(unpack, arguments))


def _alone(queries: Floats, part: Part, depth: int, ids: Sequence[str], threads: int) -> Hits:
    return exact(queries, Here(part, threads), depth, ids)


def _as_they_end(calls: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """(number of the call, its value) as they end; a value that was used may leave Ray's object store."""
    import ray

    number = {call: index for index, call in enumerate(calls)}
    del calls
    try:
        while number:
            (call,), _ = ray.wait(list(number), num_returns=1)
            index = number.pop(call)
            try:
                value = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            del call
            yield index, value
            del value
    finally:
        for call in number:
            ray.cancel(call, force=False)
