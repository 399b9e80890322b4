"""What stands below the main table, as tables: whether differences are real, on which queries, how much data it takes,
the encoders that queries wait for, what an approximate index found, and which knobs matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from orchestrator.records import TEACHER, Comparison, EncoderFigures, IndexFigures, Result
from orchestrator.report import wins
from orchestrator.report.accountings import WAYS, accountings, columns
from orchestrator.report.efficiency import families, interval, reached
from orchestrator.report.importance import importances
from orchestrator.report.table import LEVEL, difference
from orchestrator.report.wording import parameters, percent, probability, seconds, signed, times

MOST_PAIRS = 15  # where there are more, those of neighbouring rows are shown


@dataclass(frozen=True)
class Detail:
    """A table of some rows of the comparison, or pairs of them: name → cells as they are printed, under `heads`.

    `texts` has what stands beside a name, where something does.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    cells: dict[str, list[str]]
    caption: str
    of: str = "recipe"  # what the names are
    texts: dict[str, str] = field(default_factory=dict)


def details(comparison: Comparison) -> list[Detail]:
    """Those that say something: of what was tested, of pairs of rows query by query, of shares of the data where rows
    differ in them, of encoders where they differ or there is a teacher's, of an index where it is none.
    """
    pairs = wins.pairs(comparison)
    return [
        *_differences(comparison),
        *_speed_ups(comparison),
        *_wins(comparison, pairs),
        *(queries(comparison, pair) for pair in pairs if pair.greatest),
        *_efficiency(comparison),
        *_encoders(comparison),
        *_index(comparison),
    ]


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
        + (
            "Where each is counted to its end, trials that were ended early are taken to their end at their own pace. "
            if stopped
            else ""
        )
        + "The score that both reach is the lower of the two best ones; learning curves are straight between "
        "validations, and every other trial of the search is paid for in full."
    )
    yield Detail("accountings", "How many times less, counted in several ways", heads, cells, caption, of="rows")


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
            signed(each.mean),
            f"{signed(each.low)} … {signed(each.high)}",
            signed(each.effect, 2),
            probability(each.t_test_holm),
            probability(each.randomization_holm),
            probability(each.equivalence_holm),
        ]
        for each in shown
    }
    over = "queries and seeds" if any(each.seeds > 1 for each in found) else "queries"
    caption = (
        f"{which}, {measure} query by query over {found[0].queries:,} test queries: the mean difference, its bootstrap "
        f"interval over {over}, and p-values of paired tests that there is none, and of two one-sided t-tests that it "
        f"is larger than the margin, all after Holm's correction for {len(found):,} pairs."
    )
    yield Detail("differences", "Is the difference real?", heads, cells, caption, of="rows")


def _wins(comparison: Comparison, pairs: list[wins.Pair]) -> Iterator[Detail]:
    if not pairs:
        return
    cells = {}
    for pair in pairs:
        told = difference(comparison, pair.row, pair.other)
        sure = bool(told and told.randomization_holm < LEVEL)
        counts = len(pair.wins), pair.ties, len(pair.losses)
        cells[f"{pair.row} − {pair.other}"] = [*(f"{n:,}" for n in counts), signed(pair.mean) + "*" * sure]
    caption = (
        f"On how many of the {comparison.test_queries:,} test queries the first row has the higher "
        f"{comparison.measures[0]}, the same, and the lower; and the mean difference over all, * where it is "
        f"significant (randomization test, p < {LEVEL} after Holm's correction over all pairs of rows)."
    )
    yield Detail("wins", "Query by query", ("wins", "ties", "losses", "mean"), cells, caption, of="rows")


def queries(comparison: Comparison, pair: wins.Pair) -> Detail:
    """The queries that two rows differ most on."""
    cells = {query.id: [f"{query.row:.4f}", f"{query.other:.4f}", signed(query.difference)] for query in pair.greatest}
    texts = {id_: comparison.query_texts[id_] for id_ in cells if id_ in comparison.query_texts}
    title = f"Where {pair.row} wins and loses most against {pair.other}"
    caption = f"{title}, in {comparison.measures[0]}."
    return Detail("queries", title, (pair.row, pair.other, "difference"), cells, caption, "query", texts)


def _efficiency(comparison: Comparison) -> Iterator[Detail]:
    found = reached(families(comparison))
    if not found:
        return
    measure = comparison.measures[0]
    values = {result.name: result.per_query[measure] for result in comparison.results}
    cells = {}
    for each in found:
        share, best = each.other.best
        least = each.family.points[0][0]
        low, high = (_needed(bound, least) for bound in interval(each, values))
        cells[f"{each.family.name} as good as {each.other.name}"] = [
            _needed(math.inf if each.share is None else each.share, least),
            low if low == high else f"{low} … {high}",
            percent(share),
            f"{best:.4f}",
        ]
    heads = ("at", "95 %", "instead\u00a0of", measure)
    caption = (
        f"At which share of the judged training queries the first row has the best {measure} of the second, and the "
        f"bootstrap's interval over the {comparison.test_queries:,} test queries: on a line between the shares that "
        "were measured, linear in the logarithm of the share, the first time. ≤: at the smallest one already."
    )
    if not any(result.seeds for result in comparison.results):
        caption += " With one run a share, some thousandths are noise."
    yield Detail("shares", "How much data it takes", heads, cells, caption, of="rows")


def _needed(share: float, least: float) -> str:
    """A share that is enough; infinity is never, and of the smallest one that was measured a smaller one may be."""
    if share == math.inf:
        return "not reached"
    return f"≤ {percent(share)}" if share <= least else percent(share)


def knobs(comparison: Comparison) -> Iterator[Detail]:
    """Of each search over several knobs, how much each matters; not in `details` because it takes a second or two."""
    for result in comparison.results:
        found = importances(result)
        if found:
            cells = {knob: [f"{share:.0%}"] for knob, share in found.items()}
            title = f"{result.name}: which knob matters"
            yield Detail(
                "importance", title, ("of the variance",), cells, f"{title}. {importance_caption(result)}", of="knob"
            )


def importance_caption(result: Result) -> str:
    """What the importance of knobs is, and how far it can be trusted."""
    scores = [trial for trial in result.trials if math.isfinite(trial.validation)]
    stopped = sum(trial.state == "stopped" for trial in scores)
    last = f", those of the {stopped} stopped ones their last" if stopped else ""
    return (
        "How much of the variance of validation nDCG@10 over the searched values a knob explains by itself (fANOVA); "
        f"what is missing to 100% is of knobs together. From {len(scores)} scores{last}: few trials say little."
    )


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
    return [
        parameters(figures.parameters),
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
