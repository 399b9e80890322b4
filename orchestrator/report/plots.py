"""The plots of a report: SVG that takes its colours from the page, so that one file is read on light and on dark.

Text stays text (`svg.fonttype: none`), nothing depends on the day or on a font of the machine, and the same comparison
gives the same bytes. matplotlib draws with stand-in colours, which become `var(--c0)`, `var(--c1)`, … and
`currentColor`; the page defines them once per colour scheme.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.records import Comparison, Result, Trial
from orchestrator.report import wording
from orchestrator.report.table import rows

# The first five follow Okabe and Ito's colour-blind-safe hues, darkened for light paper and lightened for dark: 3:1 or
# more against either. Colour is never alone: each recipe also has a marker.
PALETTE = (
    ("#0072b2", "#56b4e9"),
    ("#c44e00", "#f08a4b"),
    ("#00805c", "#2cc9a0"),
    ("#a8488a", "#e29ac8"),
    ("#86690a", "#e3c567"),
    ("#5b4ab8", "#a99bff"),
    ("#5f6b75", "#a9b4be"),
    ("#8c2d19", "#ff9a86"),
)
MARKERS = "osD^vPX*"
_INK, _GRID = "#010101", "#020202"
_SIZE = (5.6, 3.7)  # inches: 403 x 266 points, so that 9.5 point text stays legible on a telephone

_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.14,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def slot(comparison: Comparison, name: str) -> int:
    """Which colour and marker a recipe has, in every plot."""
    trained = [row.name for row in rows(comparison) if not row.untrained]
    return trained.index(name) % len(PALETTE)


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
        _limits(axes, points, base)
        for value in base:
            axes.axhline(value, color=_INK, linestyle=(0, (5, 4)), linewidth=1)
            axes.annotate("untrained", (1, value), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
        for row, point in zip(trained, points, strict=True):
            _marker(axes, *point, slot(comparison, row.name), size=9)
        _seconds_axis(axes.xaxis)
        axes.set_xlabel("device seconds of all runs, log scale")
        axes.set_ylabel(measure)
        _label_points(
            axes, points, [row.name for row in trained], [slot(comparison, row.name) for row in trained], base
        )

    return _svg("plane", draw)


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
            axes.barh(place, up.ratio, height=0.3, color=_colour(slot(comparison, row.name)))
            level = abs(up.quality_difference) < 0.0005
            quality = f"level on {measure}" if level else f"{up.quality_difference:+.3f} {measure}".replace("-", "−")
            axes.annotate(f"{row.name} against {up.over}", (0, place), (0, 10), "data", "offset points")
            axes.annotate(
                f"{wording.times(up.ratio)} · {quality}",
                (up.ratio, place),
                (5, 0),
                "data",
                "offset points",
                va="center",
            )
            axes.vlines(1, place - 0.15, place + 0.15, color=_INK, linewidth=1.2)
        axes.set_xlim(0, max(longest, 1) * 1.5)
        axes.set_ylim(len(bars) - 0.4, -0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.set_xlabel("times less device time, all runs")

    return _svg("speed", draw, height=max(1.7, 0.9 + 0.5 * len(bars)))


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
                axes.plot(*zip(*points, strict=True), color=_colour(where), zorder=3 if chosen else 2, **faint)
                if chosen:
                    _marker(axes, *points[-1], where, size=6)
                    ends.append((points[-1], result.name, where))
        axes.set_xlim(left=0)
        axes.margins(x=0.04, y=0.08)
        axes.set_xlabel("device seconds of one run")
        axes.set_ylabel("nDCG@10, validation")
        _legend(axes, [(name, where) for _, name, where in ends])

    return _svg("curves", draw, height=_SIZE[1] + 0.22 * ((len(results) + 1) // 2))


def knob_trials(comparison: Comparison, result: Result, knob: str) -> str | None:
    """The trials of one tuned recipe: a knob's value against the validation score; None where no trial has the knob."""
    trials = [trial for trial in result.trials if knob in trial.parameters and math.isfinite(trial.validation)]
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
                axes.plot(place, trial.validation, "x", color=_colour(where), markersize=7, markeredgewidth=1.8)
            else:
                _marker(axes, place, trial.validation, where, size=7)
            if chosen:
                axes.plot(place, trial.validation, "o", mfc="none", mec=_INK, markersize=14, markeredgewidth=1.2)
                axes.annotate("chosen", (place, trial.validation), (0, 11), "data", "offset points", ha="center")
        axes.margins(x=0.08, y=0.2)
        axes.set_xlabel(knob)
        axes.set_ylabel("nDCG@10, validation")

    return _svg(f"trials {result.name} {knob}", draw, height=3.1)


def _points(trial: Trial) -> list[tuple[float, float]]:
    return [
        (point.device_seconds, point.validation)
        for point in trial.curve
        if point.validation is not None and math.isfinite(point.validation)
    ]


def _colour(where: int) -> str:
    return PALETTE[where][0]


def _marker(axes: Any, x: float, y: float, where: int, size: float) -> None:
    axes.plot(x, y, MARKERS[where], color=_colour(where), markersize=size, zorder=4, clip_on=False)


def _legend(axes: Any, entries: list[tuple[str, int]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_colour(where), marker=MARKERS[where], markersize=6) for _, where in entries]
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


def _limits(axes: Any, points: list[tuple[float, float]], base: list[float]) -> None:
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


def _label_points(
    axes: Any, points: list[tuple[float, float]], names: list[str], slots: list[int], base: list[float]
) -> None:
    """Put each name beside its point where it covers neither a point, nor another name, nor the dashed line."""
    from matplotlib.transforms import Bbox

    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    spots = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in spots]
    frame = axes.get_window_extent(renderer)
    for value in base:
        height = axes.transData.transform((1, value))[1]
        taken.append(Bbox.from_extents(frame.x0, height - 2, frame.x1, height + 2))
        taken.append(Bbox.from_extents(frame.x1 - 75, height, frame.x1, height + 20))
    away = [(s * dx, dy) for step in (1, 2, 3) for dx, dy in ((10, 0), (8, 9 * step), (8, -9 * step)) for s in (1, -1)]
    away += [(0, s * 12 * step) for step in (1, 2, 3) for s in (1, -1)]
    for point, name, where in zip(points, names, slots, strict=True):
        text = axes.annotate(name, point, (0, 0), "data", "offset points", va="center", color=_colour(where))
        tried = []
        for dx, dy in away:
            text.set_ha("left" if dx > 0 else "right" if dx < 0 else "center")
            text.set_position((dx, dy))
            box = text.get_window_extent(renderer)
            covered = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, frame)
            tried.append((covered + outside, (dx, dy), text.get_ha(), box))
            if covered + outside < 1e-6:
                break
        _, place, side, box = min(tried, key=lambda attempt: attempt[0])
        text.set_ha(side)
        text.set_position(place)
        taken.append(box)


def _overlap(left: Any, right: Any) -> float:
    width = min(left.x1, right.x1) - max(left.x0, right.x0)
    height = min(left.y1, right.y1) - max(left.y0, right.y0)
    return float(max(width, 0) * max(height, 0))


def _svg(name: str, draw: Callable[[Any], None], height: float = _SIZE[1]) -> str:
    """Draw on fresh axes and return an <svg> element that scales with the page and takes its colours from it."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    salt = hashlib.sha256(name.encode()).hexdigest()[:8]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what the user's matplotlibrc says
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        figure = Figure(figsize=(_SIZE[0], height), dpi=72, layout="constrained")
        FigureCanvasAgg(figure)  # to measure text
        axes = figure.add_subplot()
        figure.draw_without_rendering()
        draw(axes)
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return _for_page(written.getvalue())


def _for_page(svg: str) -> str:
    """An <svg> element without a prolog, a size or names of its own; only tags change, never the text between them."""
    svg = re.sub(r"<style.*?</style>|<!--.*?-->|<metadata.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r"<[^>]*>", lambda tag: _tag_for_page(tag.group()), svg).strip()


def _tag_for_page(tag: str) -> str:
    if tag.startswith("<svg"):
        box = re.search(r'viewBox="[^"]*"', tag)
        return f'<svg {box.group() if box else ""} xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true">'
    if tag.startswith("<g "):
        tag = re.sub(r' id="[^"]*"', "", tag)  # the same in every figure, and nothing refers to them
    tag = re.sub(r"font: ([^;\"]* )?([\d.]+px) [^;\"]*", r"font-size: \2", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    for where, (stand_in, _) in enumerate(PALETTE):
        tag = tag.replace(stand_in, f"var(--c{where})")
    return tag.replace(_INK, "currentColor").replace(_GRID, "currentColor")
