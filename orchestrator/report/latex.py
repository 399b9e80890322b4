"""The table of a comparison for a paper: LaTeX's tabular, with the rules of booktabs."""

from __future__ import annotations

from orchestrator.records import Comparison
from orchestrator.report import wording
from orchestrator.report.table import rows

_SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "−": "$-$",
    }
)


def page(comparison: Comparison) -> str:
    """The table, the best value of each measure bold and letters raised; above it, as comments, what is to be said."""
    lines, prices = rows(comparison), comparison.prices
    best = {measure: wording.best(lines, measure) for measure in comparison.measures}
    heads = ["recipe", *comparison.measures, "device s", *([f"cost, {prices.currency}"] if prices else []), "less than"]
    body = []
    for row in lines:
        values = []
        for i, name in enumerate(comparison.measures):
            value = f"{row.measures[name]:.4f}"
            value = rf"\textbf{{{value}}}" if row.name in best[name] else value
            values.append(f"{value}$^{{{row.beats}}}$" if i == 0 and row.beats else value)
        less = ", ".join(f"{up.over} {wording.times(up.ratio)}" for up in row.speed_ups)
        paid = [_escape(wording.money(row.money))] if prices else []
        spent = _escape(wording.seconds(row.all_seconds))
        body.append([_escape(row.label), *values, spent, *paid, _escape(less or "–")])
    said = [wording.what_was_run(comparison), *wording.sentences(comparison)]
    return "\n".join(
        [
            *(f"% {' '.join(sentence.split())}" for sentence in said),
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 2)}l}}",
            r"\toprule",
            _line([_escape(head) for head in heads]),
            r"\midrule",
            *map(_line, body),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    return " ".join(text.split()).translate(_SPECIAL)
