"""The plots of a report, one function each; an SVG element, or None where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from orchestrator.records import Comparison, Result, Trial
from orchestrator.report import wording
from orchestrator.report.svg import HEIGHT, INK, MARKERS, PALETTE, colour, label_points, svg
from orchestrator.report.table import rows


def slot(comparison: Comparison, name: str) -> int:
    """Which colour and marker a recipe has, in every plot: the same for rows that differ in their share of the data."""
    family = {result.name: result.family or result.name for result in comparison.results}
    trained = dict.fromkeys(family[row.name] for row in rows(comparison) if not row.untrained)
    return list(trained).index(family[name]) % len(PALETTE)


def quality_and_cost(comparison: Comparison) -> str | None:
    """The first measure against the device seconds of all runs; None where no recipe cost anything."""
    table, measure = rows(comparison), comparison.measures[0]
    trained = [row for row in table if not row.untrained and row.all_seconds > 0]
    if not trained:
        return None

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        points = [(row.all_seconds, row.measures[measure]) for row in trained]
        base = [row.measures[measure] for row in table if row.untrained]
        limits(axes, points, base)
        for row in (row for row in table if row.untrained):
            level(axes, row.measures[measure], row.name)
        for row, point in zip(trained, points, strict=True):
            marker(axes, *point, slot(comparison, row.name), size=9)
        _seconds_axis(axes.xaxis)
        axes.set_xlabel("device seconds of all runs, log scale")
        axes.set_ylabel(measure)
        label_points(axes, points, [row.name for row in trained], [slot(comparison, row.name) for row in trained], base)

    return svg("plane", draw)


def speed_ups(comparison: Comparison) -> str | None:
    """How many times less device time each parameter-free recipe needed; None where there is nothing to compare."""
    bars = [(row, up) for row in rows(comparison) for up in row.speed_ups]
    if not bars:
        return None

    def draw(axes: Any) -> None:
        measure = comparison.measures[0]
        axes.grid(False)
        longest = max(up.ratio for _, up in bars)
        for place, (row, up) in enumerate(bars):
            axes.barh(place, up.ratio, height=0.3, color=colour(slot(comparison, row.name)))
            level = abs(up.quality_difference) < 0.0005
            quality = f"level on {measure}" if level else f"{up.quality_difference:+.3f} {measure}".replace("-", "−")
            axes.annotate(f"{row.name} against {up.over}", (0, place), (0, 10), "data", "offset points")
            axes.annotate(
                f"{wording.times(up.ratio)} · {quality}",
                (max(up.ratio, 1.0), place),
                (5, 0),
                "data",
                "offset points",
                va="center",
            )
            axes.vlines(1, place - 0.15, place + 0.15, color=INK, linewidth=1.2)
        axes.set_xlim(0, max(longest, 1) * 1.65)  # the words are larger on a telephone
        axes.set_ylim(len(bars) - 0.4, -0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.set_xlabel("times less device time, all runs")

    return svg("speed", draw, height=max(1.7, 0.9 + 0.5 * len(bars)))


def learning_curves(comparison: Comparison) -> str | None:
    """Validation against device seconds of a run: the winners as lines, the other trials faint; None without points."""
    results = [result for result in comparison.results if any(_points(trial) for trial in result.trials)]
    if not results:
        return None

    def draw(axes: Any) -> None:
        ends = []
        for result in results:
            where = slot(comparison, result.name)
            for trial in result.trials:
                points = _points(trial)
                if not points:
                    continue
                chosen = trial.name == result.winner
                faint: dict[str, Any] = {} if chosen else {"alpha": 0.3, "linewidth": 0.9}
                if chosen and result.lesser:
                    faint = {"linewidth": 1.1, "linestyle": (0, (4, 1.5))}
                axes.plot(*zip(*points, strict=True), color=colour(where), zorder=3 if chosen else 2, **faint)
                if chosen:
                    marker(axes, *points[-1], where, size=4 if result.lesser else 6)
                    ends += [] if result.lesser else [(points[-1], result.name, where)]
        axes.set_xlim(left=0)
        axes.margins(x=0.04, y=0.08)
        axes.set_xlabel("device seconds of one run")
        axes.set_ylabel("nDCG@10, validation")
        legend(axes, [(name, where) for _, name, where in ends])

    return svg("curves", draw, height=HEIGHT + 0.22 * ((len(results) + 1) // 2))


def knob_trials(comparison: Comparison, result: Result, knob: str) -> str | None:
    """The trials of one tuned recipe: a knob's value against the validation score; None where no trial has the knob.
    Those that failed have no score.
    """
    scored = [trial for trial in result.trials if trial.state != "failed" and math.isfinite(trial.validation)]
    trials = [trial for trial in scored if knob in trial.parameters]
    if not trials:
        return None
    values = [trial.parameters[knob] for trial in trials]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]

    def draw(axes: Any) -> None:
        where = slot(comparison, result.name)
        if len(numbers) == len(values):
            places: Sequence[float] = [float(value) for value in numbers]
            if min(places) > 0 and max(places) / min(places) > 10:
                axes.set_xscale("log")
            ticks = sorted(set(places))
            if len(ticks) <= 10:
                axes.set_xticks(ticks)
                axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        else:
            words = list(dict.fromkeys(str(value) for value in values))
            places = [float(words.index(str(value))) for value in values]
            axes.set_xticks(range(len(words)), words)
        for place, trial in zip(places, trials, strict=True):
            chosen = trial.name == result.winner
            if trial.state == "stopped":
                axes.plot(place, trial.validation, "x", color=colour(where), markersize=7, markeredgewidth=1.8)
            else:
                marker(axes, place, trial.validation, where, size=7)
            if chosen:
                axes.plot(place, trial.validation, "o", mfc="none", mec=INK, markersize=14, markeredgewidth=1.2)
                axes.annotate("chosen", (place, trial.validation), (0, 11), "data", "offset points", ha="center")
        axes.margins(x=0.08, y=0.2)
        axes.set_xlabel(knob)
        axes.set_ylabel("nDCG@10, validation")

    return svg(f"trials {result.name} {knob}", draw, height=3.1)


def _points(trial: Trial) -> list[tuple[float, float]]:
    return [
        (point.device_seconds, point.validation)
        for point in trial.curve
        if point.validation is not None and math.isfinite(point.validation)
    ]


def level(axes: Any, value: float, name: str) -> None:
    """A dashed line at the quality of an encoder that is not trained here."""
    axes.axhline(value, color=INK, linestyle=(0, (5, 4)), linewidth=1)
    axes.annotate(name, (1, value), (0, 3), ("axes fraction", "data"), "offset points", ha="right")


def marker(axes: Any, x: float, y: float, where: int, size: float) -> None:
    """A point of the recipe with this slot."""
    axes.plot(x, y, MARKERS[where], color=colour(where), markersize=size, zorder=4, clip_on=False)


def legend(axes: Any, entries: list[tuple[str, int]]) -> None:
    """Names and their slots, above the axes."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour(where), marker=MARKERS[where], markersize=6) for _, where in entries]
    axes.legend(
        handles,
        [name for name, _ in entries],
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        ncols=2,
        frameon=False,
        borderaxespad=0,
        columnspacing=1.6,
    )


def limits(axes: Any, points: list[tuple[float, float]], base: list[float]) -> None:
    """Room on the right and left for labels: the axis is logarithmic, so by factors."""
    costs, values = [x for x, _ in points], [y for _, y in points] + base
    wide = max(math.log10(max(costs) / min(costs)), 0.6)
    axes.set_xlim(min(costs) / 10 ** (0.3 * wide), max(costs) * 10 ** (0.3 * wide))
    high = max(max(values) - min(values), 0.01)
    axes.set_ylim(min(values) - 0.2 * high, max(values) + 0.2 * high)


def _seconds_axis(axis: Any) -> None:
    """Plain numbers, and enough of them where the axis spans little more than one power of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    steps = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
