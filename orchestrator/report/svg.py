"""Drawing for a page: SVG that takes its colours from the page, so that one file is read on light and on dark.

Text stays text (`svg.fonttype: none`), nothing depends on the day or on a font of the machine, and the same plot gives
the same bytes. matplotlib draws with stand-in colours, which become `var(--c0)`, `var(--c1)`, … and `currentColor`;
the page defines them once per colour scheme.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

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
INK, _GRID = "#010101", "#020202"
_WIDTH, HEIGHT = 5.6, 3.7  # inches: 403 x 266 points, so that 9.5 point text stays legible on a telephone

_STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelpad": 7.0,
    "axes.linewidth": 0.8,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.14,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def colour(where: int) -> str:
    """What stands in for the colour of a slot while drawing."""
    return PALETTE[where][0]


def svg(name: str, draw: Callable[[Any], None], height: float = HEIGHT) -> str:
    """Draw on fresh axes and return an <svg> element that scales with the page and takes its colours from it."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    salt = hashlib.sha256(name.encode()).hexdigest()[:8]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what the user's matplotlibrc says
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        figure = Figure(figsize=(_WIDTH, height), dpi=72, layout="constrained")
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
    return tag.replace(INK, "currentColor").replace(_GRID, "currentColor")


def label_points(
    axes: Any, points: list[tuple[float, float]], names: list[str], slots: Sequence[int | None], base: list[float]
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
        text = axes.annotate(
            name, point, (0, 0), "data", "offset points", va="center", color=INK if where is None else colour(where)
        )
        tried = []
        for dx, dy in away:
            text.set_ha("left" if dx > 0 else "right" if dx < 0 else "center")
            text.set_position((dx, dy))
            box = text.get_window_extent(renderer)
            covered = sum(overlap(box, other) for other in taken)
            outside = box.width * box.height - overlap(box, frame)
            tried.append((covered + outside, (dx, dy), text.get_ha(), box))
            if covered + outside < 1e-6:
                break
        _, place, side, box = min(tried, key=lambda attempt: attempt[0])
        text.set_ha(side)
        text.set_position(place)
        taken.append(box)


def overlap(left: Any, right: Any) -> float:
    """The area that two boxes share."""
    width = min(left.x1, right.x1) - max(left.x0, right.x0)
    height = min(left.y1, right.y1) - max(left.y0, right.y0)
    return float(max(width, 0) * max(height, 0))
