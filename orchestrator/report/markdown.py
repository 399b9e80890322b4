"""The table of a comparison in Markdown, for a README or an issue."""

from __future__ import annotations

import html
import re

from orchestrator.records import Comparison
from orchestrator.report import wording
from orchestrator.report.details import Detail, details, knobs
from orchestrator.report.ledger_table import shared_costs
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
                escape(row.label),
                escape(wording.knobs(row)),
                wording.trials(row),
                *[
                    _bold(wording.value(row, name), row.name in best[name]) + (beaten if i == 0 else "")
                    for i, name in enumerate(comparison.measures)
                ],
                wording.seconds(row.winner_seconds),
                _bold(wording.seconds(row.all_seconds), row.name in cheapest),
                *([wording.money(row.money)] if comparison.prices else []),
                ", ".join(f"{escape(up.over)} {wording.times(up.ratio)}" for up in row.speed_ups) or "–",
            ]
        )
    said = "".join(f"- {escape(sentence)}\n" for sentence in wording.sentences(comparison))
    table = _table([escape(head) for head in heads], rule, body)
    page = f"# {escape(comparison.name)}\n\n{escape(wording.what_was_run(comparison))}\n\n{table}\n\n{said}"
    for each in (*details(comparison), *knobs(comparison), *shared_costs(comparison)):
        folded = each.of == "query"  # is long where texts are
        page += (
            f"\n<details><summary>{html.escape(each.title)}</summary>\n\n{detail(each)}\n\n</details>\n"
            if folded
            else f"\n{escape(each.caption)}\n\n{detail(each)}\n"
        )
    return page


def detail(detail: Detail) -> str:
    """The table of a detail."""
    names = {name: f"{name}: {detail.texts[name]}" if name in detail.texts else name for name in detail.cells}
    cells = [[escape(names[name]), *map(escape, each)] for name, each in detail.cells.items()]
    return _table([detail.of, *map(escape, detail.heads)], [":--", *["--:"] * len(detail.heads)], cells)


def _table(heads: list[str], rule: list[str], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *body))


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def escape(text: str) -> str:
    """Text that Markdown shows as it is, inside a table cell too."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
