"""What an approximate index found and how fast, row by row; nothing where search was exact."""

from __future__ import annotations

from orchestrator.records import Comparison, IndexFigures
from orchestrator.report.wording import seconds

HEADS = ("recall", "ms a query", "ms, 95th percentile", "queries/s at once", "built in s", "MB")


def table(comparison: Comparison) -> dict[str, list[str]]:
    """Row → its figures as they are printed, under HEADS; empty where search was exact."""
    return {result.name: _cells(result.index) for result in comparison.results if result.index is not None}


def caption(comparison: Comparison) -> str:
    """What the figures are of. Measures above are those of what the index found."""
    first = next(result.index for result in comparison.results if result.index is not None)
    cores = f"{first.threads} CPU core" + ("s" if first.threads != 1 else "")
    return (
        f"Searched with the index {first.index} on {cores}. Recall is the share of the exact top {first.depth:,} that "
        "it finds; the measures are those of what it found."
    )


def _cells(figures: IndexFigures) -> list[str]:
    return [
        f"{figures.recall:.4f}",
        f"{figures.median_ms:.2f}",
        f"{figures.p95_ms:.2f}",
        f"{figures.queries_per_second:,.0f}",
        seconds(figures.build_seconds),
        f"{figures.bytes / 1e6:,.1f}",
    ]
