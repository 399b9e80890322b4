"""A plot for the documentation: lines, one file that reads on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.report.svg import MARKERS, PALETTE


def lines(
    path: Path, across: str, up: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, log: bool = False
) -> None:
    """Draw each curve's points, joined; across on a logarithmic scale, up on one from 0 or, with `log`, as well."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": path.name, "font.size": 9.5, "legend.frameon": False}):
        figure = Figure(figsize=(5.6, 3.7), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        for name, (colour, _), marker in zip(curves, PALETTE, MARKERS, strict=False):
            axes.plot(*zip(*curves[name], strict=True), label=name, color=colour, marker=marker, markersize=5)
        axes.set_xscale("log", base=2)
        if log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.1 * max(value for points in curves.values() for _, value in points))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
        axes.set_xticks(sorted({place for points in curves.values() for place, _ in points}))
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(alpha=0.2)
        axes.legend()
        figure.savefig(path, metadata={"Date": None, "Creator": None})
