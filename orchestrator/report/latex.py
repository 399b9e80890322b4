"""The tables of a comparison for a paper: LaTeX's tabular, with the rules of booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.records import Comparison
from orchestrator.report import wording
from orchestrator.report.details import Detail, details
from orchestrator.report.table import rows

_SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "−": "$-$",
        "±": r"$\pm$",
        "≤": r"$\leq$",
    }
)


def page(comparison: Comparison) -> str:
    """The table, the best value of each measure bold and letters raised; above it, as comments, what is to be said.
    Below it wins and losses, and what share of the data is enough, where the page has these.
    """
    lines, prices = rows(comparison), comparison.prices
    best = {measure: wording.best(lines, measure) for measure in comparison.measures}
    heads = ["recipe", *comparison.measures, "device s", *([f"cost, {prices.currency}"] if prices else []), "less than"]
    body = []
    for row in lines:
        values = []
        for i, name in enumerate(comparison.measures):
            number, _, spread = wording.value(row, name).partition(" ")
            number = rf"\textbf{{{number}}}" if row.name in best[name] else number
            value = number + (f" {_escape(spread)}" if spread else "")
            values.append(f"{value}$^{{{row.beats}}}$" if i == 0 and row.beats else value)
        less = ", ".join(f"{up.over} {wording.times(up.ratio)}" for up in row.speed_ups)
        paid = [_escape(wording.money(row.money))] if prices else []
        spent = _escape(wording.seconds(row.all_seconds))
        body.append([_escape(row.label), *values, spent, *paid, _escape(less or "–")])
    said = [wording.what_was_run(comparison), *wording.sentences(comparison)]
    return "\n".join(
        [
            *(f"% {' '.join(sentence.split())}" for sentence in said),
            *_table(f"l{'r' * (len(heads) - 2)}l", heads, body),
            *(line for detail in details(comparison) if detail.name in ("wins", "shares") for line in _detail(detail)),
            "",
        ]
    )


def tables(said: Sequence[str], details: Sequence[Detail]) -> str:
    """Tables below one another; above them, as comments, what is to be said."""
    lines = [f"% {' '.join(sentence.split())}" for sentence in said]
    return "\n".join([*lines, *(line for detail in details for line in _detail(detail)), ""])


def _detail(detail: Detail) -> list[str]:
    body = [[_escape(name), *map(_escape, cells)] for name, cells in detail.cells.items()]
    heads = [detail.of, *detail.heads]
    return ["", f"% {detail.caption}", *_table("l" + "r" * len(detail.heads), heads, body)]


def _table(columns: str, heads: list[str], body: list[list[str]]) -> list[str]:
    return [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _line([_escape(head) for head in heads]),
        r"\midrule",
        *map(_line, body),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    return " ".join(text.split()).translate(_SPECIAL)
