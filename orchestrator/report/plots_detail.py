"""The plots of what stands below the main table: query by query, by the share of the data, by the size of the encoder,
by knob. As in `plots`, each is an SVG element, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.records import TEACHER, UNTRAINED, Comparison, Result
from orchestrator.report import wording
from orchestrator.report.efficiency import families
from orchestrator.report.plots import legend, level, limits, marker, slot
from orchestrator.report.svg import INK, colour, label_points, svg
from orchestrator.report.wins import Pair

_STEPS = 400  # of more queries, so many evenly spaced ones are drawn


def waterfall(comparison: Comparison, pair: Pair, reach: float) -> str:
    """The difference on each test query, the greatest win first, from −`reach` to `reach`."""
    found = [query.difference for query in pair.queries]
    if len(found) > _STEPS:
        found = [found[round(step * (len(found) - 1) / (_STEPS - 1))] for step in range(_STEPS)]
    edges = [step * len(pair.queries) / len(found) for step in range(len(found) + 1)]

    def draw(axes: Any) -> None:
        won, lost = sum(value > 0 for value in found), len(found) - sum(value < 0 for value in found)
        for name, part in ((pair.row, slice(0, won)), (pair.other, slice(lost, len(found)))):
            ink = INK if name in (UNTRAINED, TEACHER) else colour(slot(comparison, name))
            axes.stairs(found[part], edges[part.start : part.stop + 1], fill=True, color=ink, alpha=0.85)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlim(0, len(pair.queries))
        axes.set_ylim(-1.12 * reach, 1.12 * reach)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
        beside = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(f"{pair.row} better: {len(pair.wins):,}", (1, 1), (0, -4), ha="right", va="top", **beside)
        axes.annotate(f"{pair.other} better: {len(pair.losses):,}", (0, 0), (6, 5), ha="left", va="bottom", **beside)
        axes.set_xlabel(f"{len(pair.queries):,} test queries, sorted")
        axes.set_ylabel(f"difference in {comparison.measures[0]}")

    return svg(f"waterfall {pair.row} {pair.other}", draw, height=2.9)


def quality_and_share(comparison: Comparison) -> str | None:
    """The first measure against the share of the judged queries, one line a family; None where there is no family."""
    found = families(comparison)
    if not found:
        return None
    measure = comparison.measures[0]

    def draw(axes: Any) -> None:
        from matplotlib.ticker import FixedLocator, NullLocator

        axes.set_xscale("log")
        for family in found:
            where = slot(comparison, family.name)
            if len(family.points) > 1:
                axes.plot(*zip(*family.points, strict=True), color=colour(where), zorder=3)
            for share, value in family.points:
                marker(axes, share, value, where, size=7)
        for result in (result for result in comparison.results if result.recipe in (UNTRAINED, TEACHER)):
            level(axes, result.measures[measure], result.name)
        axes.xaxis.set_major_locator(FixedLocator(_apart({share for family in found for share, _ in family.points})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: wording.percent(value))
        axes.margins(x=0.05, y=0.1)
        axes.set_xlabel("share of the judged training queries, log scale")
        axes.set_ylabel(measure)
        legend(axes, [(family.name, slot(comparison, family.name)) for family in found])

    return svg("shares", draw, height=3.7 + 0.22 * ((len(found) + 1) // 2))


def _apart(shares: Iterable[float]) -> list[float]:
    """Those that leave room for their labels, from the largest down."""
    kept: list[float] = []
    for share in sorted(shares, reverse=True):
        if not kept or kept[-1] / share > 1.3:
            kept.append(share)
    return kept


def quality_and_size(comparison: Comparison) -> str | None:
    """The first measure against the parameters that a query waits for; None where all rows have as many. Of rows that
    differ in their share of the data, the one with the largest stands for all.
    """
    found = [result for result in comparison.results if result.encoder and not result.lesser]
    if len({result.encoder.parameters for result in found if result.encoder}) < 2:
        return None
    measure = comparison.measures[0]

    def draw(axes: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xscale("log")
        points = [(float(result.encoder.parameters), result.measures[measure]) for result in found if result.encoder]
        slots = [None if result.recipe in (UNTRAINED, TEACHER) else slot(comparison, result.name) for result in found]
        limits(axes, points, [])
        for point, where in zip(points, slots, strict=True):
            if where is None:
                axes.plot(*point, "o", mfc="none", mec=INK, markersize=8, markeredgewidth=1.4, zorder=4, clip_on=False)
            else:
                marker(axes, *point, where, size=9)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        axes.set_xlabel("parameters of the query encoder, log scale")
        axes.set_ylabel(measure)
        label_points(axes, points, [result.name for result in found], slots, [])

    return svg("sizes", draw)


def knob_importance(comparison: Comparison, result: Result, found: Mapping[str, float]) -> str:
    """How much of the variance of the validation score each knob explains, as `importances` found."""

    def draw(axes: Any) -> None:
        axes.grid(False)
        for place, (knob, share) in enumerate(found.items()):
            axes.barh(place, share, height=0.3, color=colour(slot(comparison, result.name)))
            axes.annotate(knob, (0, place), (0, 10), "data", "offset points")
            axes.annotate(f"{share:.0%}", (share, place), (5, 0), "data", "offset points", va="center")
        axes.set_xlim(0, 1.08)
        axes.set_ylim(len(found) - 0.4, -0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("of the variance of validation nDCG@10")

    return svg(f"importance {result.name}", draw, height=max(1.7, 0.9 + 0.5 * len(found)))


def reach(pairs: Iterable[Pair]) -> float:
    """The greatest difference of all pairs, so that their plots have one scale."""
    return max((abs(query.difference) for pair in pairs for query in pair.queries), default=0.0) or 1.0
