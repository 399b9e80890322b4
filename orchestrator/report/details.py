"""What stands below the main table: the encoders that queries wait for, and what an approximate index found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.records import TEACHER, Comparison, EncoderFigures, IndexFigures
from orchestrator.report.accountings import WAYS, accountings, columns
from orchestrator.report.wording import probability, seconds, times

MOST_PAIRS = 15  # where there are more, those of neighbouring rows are shown


@dataclass(frozen=True)
class Detail:
    """A table of some rows of the comparison, or pairs of them: name → cells as they are printed, under `heads`."""

    name: str
    title: str
    heads: tuple[str, ...]
    cells: dict[str, list[str]]
    caption: str
    of: str = "recipe"  # what the names are


def details(comparison: Comparison) -> list[Detail]:
    """Those that say something: of what was tested, of encoders where they differ or there is a teacher's, of an index
    where it is none.
    """
    return [*_differences(comparison), *_speed_ups(comparison), *_encoders(comparison), *_index(comparison)]


def _speed_ups(comparison: Comparison) -> Iterator[Detail]:
    found = accountings(comparison)
    if not found:
        return
    heads = tuple(f"{WAYS[way]}, {unit}" for way, unit in columns())
    cells = {f"{each.row} against {each.over}": [times(each.ratios[column]) for column in columns()] for each in found}
    stopped = [each for each in found if each.stopped]
    caption = (
        "What the tuned recipe's search needed over what the parameter-free recipe's run needed, in device seconds of "
        "training (validation left out) and in examples. "
        + ("Trials that were ended early are taken to their end at their own pace. " if stopped else "")
        + "The score that both reach is the lower of the two best ones; learning curves are straight between "
        "validations, and every other trial of the search is paid for in full."
    )
    yield Detail("accountings", "How many times less, counted in several ways", heads, cells, caption, of="recipes")


def _differences(comparison: Comparison) -> Iterator[Detail]:
    found, measure = comparison.differences, comparison.measures[0]
    if not found:
        return
    shown, which = found, "Of all pairs of rows"
    if len(found) > MOST_PAIRS:
        names = [result.name for result in comparison.results]
        above = {(row, before) for before, row in pairwise(names)}
        shown, which = tuple(each for each in found if (each.row, each.other) in above), "Of each row and the one above"
    heads = (
        "difference",
        "95 %",
        "effect size d",
        "p, t-test",
        "p, randomization",
        f"p, within ±{comparison.margin:g}",
    )
    cells = {
        f"{each.row} − {each.other}": [
            _signed(each.mean),
            f"{_signed(each.low)} … {_signed(each.high)}",
            _signed(each.effect, 2),
            probability(each.t_test_holm),
            probability(each.randomization_holm),
            probability(each.equivalence_holm),
        ]
        for each in shown
    }
    caption = (
        f"{which}, {measure} query by query over {found[0].queries:,} test queries: the mean difference, its bootstrap "
        f"interval over queries{' and seeds' if found[0].seeds > 1 else ''}, and p-values of paired tests that there "
        "is none, and of two one-sided t-tests that it is larger than the margin, all after "
        f"Holm's correction for {len(found):,} pairs."
    )
    yield Detail("differences", "Is the difference real?", heads, cells, caption, of="rows")


def _signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _encoders(comparison: Comparison) -> Iterator[Detail]:
    found = {result.name: result for result in comparison.results if result.encoder}
    sizes = {result.encoder.parameters for result in found.values() if result.encoder}
    teacher = found.get(comparison.teacher or TEACHER)
    if len(sizes) < 2 and teacher is None:
        return
    measure = comparison.measures[0]
    heads, cells = ["parameters", "ms a query", "ms, 95th percentile"], {}
    if teacher:
        heads.append(f"{measure} of teacher")
    for name, result in found.items():
        assert result.encoder is not None
        cells[name] = _encoder(result.encoder)
        if teacher:
            whole = teacher.measures[measure]
            cells[name].append(f"{result.measures[measure] / whole:.1%}" if whole else "–")
    cores = _cores(next(result.encoder.threads for result in found.values() if result.encoder))
    caption = (
        f"Parameters of the encoder that a query waits for, and what it takes for one query alone, on {cores}, without "
        "the search."
    )
    yield Detail("encoders", "The encoders of the queries", tuple(heads), cells, caption)


def _index(comparison: Comparison) -> Iterator[Detail]:
    found = {result.name: result.index for result in comparison.results if result.index is not None}
    if not found:
        return
    first = next(iter(found.values()))
    caption = (
        f"Searched with the index {first.index} on {_cores(first.threads)}. Recall is the share of the exact top "
        f"{first.depth:,} that it finds; the measures are those of what it found."
    )
    heads = ("recall", "ms a query", "ms, 95th percentile", "queries/s at once", "built in s", "MB")
    cells = {name: _figures(each) for name, each in found.items()}
    yield Detail("index", "What the index finds, and how fast", heads, cells, caption)


def _cores(threads: int) -> str:
    return f"{threads} CPU core" + ("s" if threads != 1 else "")


def _encoder(figures: EncoderFigures) -> list[str]:
    millions = figures.parameters / 1e6
    return [
        f"{millions:.1f} M" if millions >= 0.1 else f"{figures.parameters:,}",
        f"{figures.median_ms:.2f}",
        f"{figures.p95_ms:.2f}",
    ]


def _figures(figures: IndexFigures) -> list[str]:
    return [
        f"{figures.recall:.4f}",
        f"{figures.median_ms:.2f}",
        f"{figures.p95_ms:.2f}",
        f"{figures.queries_per_second:,.0f}",
        seconds(figures.build_seconds),
        f"{figures.bytes / 1e6:,.1f}",
    ]
