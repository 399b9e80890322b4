"""Query by query: where one row wins and where it loses against another, on the first measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from orchestrator.records import Comparison, Result
from orchestrator.report.table import rows

MOST_PAIRS = 6
GREATEST = 5  # wins, and as many losses, that are shown with the query's text
CHARACTERS = 200  # of a query's text
_TIE = 1e-9  # what rounding may leave of no difference


@dataclass(frozen=True)
class Query:
    """A test query with the first measure of both rows."""

    id: str
    row: float
    other: float

    @property
    def difference(self) -> float:
        return self.row - self.other


@dataclass(frozen=True)
class Pair:
    """A row against another over the queries that both have values for, the greatest win first."""

    row: str
    other: str
    queries: tuple[Query, ...]

    @property
    def wins(self) -> tuple[Query, ...]:
        """Those on which the row is better, the greatest difference first."""
        return tuple(query for query in self.queries if query.difference > _TIE)

    @property
    def losses(self) -> tuple[Query, ...]:
        """Those on which the other is better, the greatest difference first."""
        return tuple(query for query in reversed(self.queries) if query.difference < -_TIE)

    @property
    def ties(self) -> int:
        return len(self.queries) - len(self.wins) - len(self.losses)

    @property
    def mean(self) -> float:
        """The mean difference."""
        return sum(query.difference for query in self.queries) / len(self.queries)

    @property
    def greatest(self) -> tuple[Query, ...]:
        """The greatest wins, the greatest first, and the greatest losses, the greatest last."""
        return (*self.wins[:GREATEST], *reversed(self.losses[:GREATEST]))


def pairs(comparison: Comparison) -> list[Pair]:
    """The pairs that matter: each parameter-free row against each tuned one; where there are none, each trained row
    against the best other one. Of many, those with the best rows. Of rows that differ in their share of the training
    queries, the one with the largest stands for all.
    """
    found = (_pair(comparison, row, other) for row, other in _that_matter(comparison))
    return [pair for pair in found if pair.queries]


def named(comparison: Comparison) -> list[str]:
    """The ids of the queries whose texts are shown, each once."""
    return list(dict.fromkeys(query.id for pair in pairs(comparison) for query in pair.greatest))


def cut(text: str) -> str:
    """A text as it is shown: in one line, and not all of a long one."""
    text = " ".join(text.split())
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS].rstrip()} …"


def _that_matter(comparison: Comparison) -> Iterable[tuple[str, str]]:
    measure = comparison.measures[0]
    lesser = {result.name for result in comparison.results if result.lesser}
    table = [row for row in rows(comparison) if row.name not in lesser]
    best = sorted(table, key=lambda row: -row.measures[measure])  # stable: of equals, the first of the table
    free = [row.name for row in best if row.kind == "parameter-free"]
    tuned = [row.name for row in best if row.kind == "tuned"]
    if free and tuned:
        # The best row against all, then the others against the best ones, as far as there is room.
        kept = sorted(product(free, tuned), key=lambda pair: free.index(pair[0]) + tuned.index(pair[1]))[:MOST_PAIRS]
        order = [row.name for row in table]
        return sorted(kept, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    return list(_with_the_best([row.name for row in best], {row.name for row in table if not row.untrained}))[
        :MOST_PAIRS
    ]


def _with_the_best(best: list[str], trained: set[str]) -> Iterator[tuple[str, str]]:
    """Each trained row and the best other one; the best row is with the second once, not twice."""
    met: set[frozenset[str]] = set()
    for name in best:
        other = next((each for each in best if each != name), None)
        if name in trained and other is not None and frozenset((name, other)) not in met:
            met.add(frozenset((name, other)))
            yield name, other


def _pair(comparison: Comparison, row: str, other: str) -> Pair:
    measure = comparison.measures[0]
    left, right = (_values(comparison.results, name, measure) for name in (row, other))
    queries = [Query(id_, value, right[id_]) for id_, value in left.items() if id_ in right]
    return Pair(row, other, tuple(sorted(queries, key=lambda query: (-query.difference, query.id))))


def _values(results: Iterable[Result], name: str, measure: str) -> dict[str, float]:
    return next(result for result in results if result.name == name).per_query.get(measure, {})
