"""The report as one HTML page: no script, no network, light and dark, readable on a telephone and on paper."""

from __future__ import annotations

from orchestrator.records import Comparison
from orchestrator.report import plots, svg, wording
from orchestrator.report.ledger_table import ledger_table, shared_costs
from orchestrator.report.sections import sections
from orchestrator.report.table import rows
from orchestrator.report.template import render

SENTENCES = 8  # below the heading; where there are more, those in the middle are folded


def page(comparison: Comparison) -> str:
    """The whole page; the same comparison gives the same bytes."""
    table = rows(comparison)
    sentences = wording.sentences(comparison)
    return render(
        "page.html",
        comparison.name,
        comparison=comparison,
        rows=table,
        letters=max(len(row.beats) for row in table),
        best={measure: wording.best(table, measure) for measure in comparison.measures},
        cheapest=wording.cheapest(table),
        slots={row.name: plots.slot(comparison, row.name) for row in table if not row.untrained},
        marks=_marks(comparison),
        sections=sections(comparison),
        sentences=sentences,
        shown=len(sentences) if len(sentences) <= SENTENCES else SENTENCES - 2,  # and the last two, which are of all
        seed=wording.configured(comparison, "seed"),
        ledger=ledger_table(comparison),
        shared_costs=list(shared_costs(comparison)),
        wording=wording,
    )


def _marks(comparison: Comparison) -> dict[str, str]:
    """The marker of each trained recipe as a path in a 12 x 12 box, for the key in the table."""
    shapes = {
        "o": "M6 1.5a4.5 4.5 0 1 0 .01 0z",
        "s": "M1.8 1.8h8.4v8.4H1.8z",
        "D": "M6 .8 11.2 6 6 11.2.8 6z",
        "^": "M6 1.2 11 10.6H1z",
        "v": "M6 10.8 11 1.4H1z",
        "P": "M4.2 1h3.6v3.2H11v3.6H7.8V11H4.2V7.8H1V4.2h3.2z",
        "X": "M3.4 1 6 3.6 8.6 1 11 3.4 8.4 6 11 8.6 8.6 11 6 8.4 3.4 11 1 8.6 3.6 6 1 3.4z",
        "*": "M6 .6 7.6 4.4 11.6 4.7 8.5 7.3 9.5 11.3 6 9.1 2.5 11.3 3.5 7.3.4 4.7 4.4 4.4z",
    }
    return {
        row.name: shapes[svg.MARKERS[plots.slot(comparison, row.name)]] for row in rows(comparison) if not row.untrained
    }
