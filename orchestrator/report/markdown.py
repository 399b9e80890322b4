"""The table of a comparison in Markdown, for a README or an issue."""

from __future__ import annotations

import html
import re

from orchestrator.records import Comparison
from orchestrator.report import wording
from orchestrator.report.details import details
from orchestrator.report.ledger_table import shares
from orchestrator.report.table import rows


def page(comparison: Comparison) -> str:
    """A heading, what was run, the table with the best value of each column bold, and what can be read off it."""
    heads = [
        "recipe",
        "knobs",
        "trials",
        *comparison.measures,
        "device s, chosen run",
        "device s, all runs",
        *([f"cost, {comparison.prices.currency}"] if comparison.prices else []),
        "less than",
    ]
    rule = [":--", ":--", *["--:"] * (len(heads) - 3), ":--"]
    lines = rows(comparison)
    best = {measure: wording.best(lines, measure) for measure in comparison.measures}
    cheapest = wording.cheapest(lines)
    body = []
    for row in lines:
        beaten = f" <sup>{row.beats}</sup>" if row.beats else ""
        body.append(
            [
                _escape(row.label),
                "none" if row.kind == "parameter-free" else _escape(wording.knobs(row)),
                wording.trials(row),
                *[
                    _bold(f"{row.measures[name]:.4f}", row.name in best[name]) + (beaten if i == 0 else "")
                    for i, name in enumerate(comparison.measures)
                ],
                wording.seconds(row.winner_seconds),
                _bold(wording.seconds(row.all_seconds), row.name in cheapest),
                *([wording.money(row.money)] if comparison.prices else []),
                ", ".join(f"{_escape(up.over)} {wording.times(up.ratio)}" for up in row.speed_ups) or "–",
            ]
        )
    said = "".join(f"- {_escape(sentence)}\n" for sentence in wording.sentences(comparison))
    table = _table([_escape(head) for head in heads], rule, body)
    page = f"# {_escape(comparison.name)}\n\n{_escape(wording.what_was_run(comparison))}\n\n{table}\n\n{said}"
    for detail in [*details(comparison), *shares(comparison)]:
        cells = [[_escape(name), *map(_escape, each)] for name, each in detail.cells.items()]
        rule = [":--", *["--:"] * len(detail.heads)]
        page += f"\n{_escape(detail.caption)}\n\n{_table([detail.of, *detail.heads], rule, cells)}\n"
    return page


def _table(heads: list[str], rule: list[str], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *body))


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, inside a table cell too."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
