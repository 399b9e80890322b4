"""The report as one HTML page: no script, no network, light and dark, readable on a telephone and on paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.records import Comparison
from orchestrator.report import plots, svg, wording
from orchestrator.report.details import details
from orchestrator.report.ledger_table import ledger_table, shares
from orchestrator.report.table import rows


@dataclass(frozen=True)
class Figure:
    """A plot with its title, the words that stand for it where it cannot be seen, and a caption."""

    title: str
    drawing: str
    label: str
    caption: str


def page(comparison: Comparison) -> str:
    """The whole page; the same comparison gives the same bytes."""
    import jinja2
    from markupsafe import Markup

    table = rows(comparison)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    environment.filters["svg"] = Markup  # from plots, where matplotlib has escaped the text
    return environment.get_template("page.html").render(
        comparison=comparison,
        rows=table,
        letters=max(len(row.beats) for row in table),
        best={measure: wording.best(table, measure) for measure in comparison.measures},
        cheapest=wording.cheapest(table),
        slots={row.name: plots.slot(comparison, row.name) for row in table if not row.untrained},
        marks=_marks(comparison),
        details=details(comparison),
        sentences=wording.sentences(comparison),
        seed=wording.configured(comparison, "seed"),
        figures=_overview(comparison) + _trials(comparison),
        ledger=ledger_table(comparison),
        shares=list(shares(comparison)),
        palette=svg.PALETTE,
        wording=wording,
    )


def _overview(comparison: Comparison) -> list[Figure]:
    measure = comparison.measures[0]
    table = [row for row in rows(comparison) if not row.untrained]
    places = "; ".join(
        f"{row.name} {row.measures[measure]:.4f} at {wording.seconds(row.all_seconds)} s" for row in table
    )
    ratios = "; ".join(
        f"{row.name} {wording.times(up.ratio)} less than {up.over}" for row in table for up in row.speed_ups
    )
    curves = "; ".join(
        f"{result.name} ends at {trial.validation:.4f}"
        for result in comparison.results
        if (trial := result.winning_trial) is not None
    )
    drawn = [
        (
            "Quality against cost",
            plots.quality_and_cost(comparison),
            f"{measure} on the test queries against device seconds of all runs: {places}",
            f"{measure} on the test queries. Up is better, left is cheaper. "
            "The cost is that of every run that the recipe needed, its search included.",
        ),
        (
            "How much less device time",
            plots.speed_ups(comparison),
            f"Device seconds of the other over those of the parameter-free recipe: {ratios}",
            f"The mark at 1x is equal cost. Beside each bar, what the saving costs or brings in {measure}.",
        ),
        (
            "Learning curves",
            plots.learning_curves(comparison),
            f"Validation nDCG@10 against device seconds of a run, the chosen run of each recipe: {curves}",
            "The chosen run of each recipe, and its other trials faint. Measured on held-out training queries.",
        ),
    ]
    return [Figure(title, drawing, label, caption) for title, drawing, label, caption in drawn if drawing is not None]


def _trials(comparison: Comparison) -> list[Figure]:
    """One figure per knob of each recipe that tried several settings."""
    figures = []
    for result in comparison.results:
        names = dict.fromkeys(name for trial in result.trials for name in trial.parameters)
        for knob in names if len(result.trials) > 1 else ():
            drawing = plots.knob_trials(comparison, result, knob)
            if drawing is not None:
                tried = "; ".join(
                    f"{wording.knob(trial.parameters[knob])}: {trial.validation:.4f}"
                    + (", stopped early" if trial.state == "stopped" else "")
                    for trial in result.trials
                    if knob in trial.parameters
                )
                label = f"Trials of {result.name}, {knob} against validation nDCG@10: {tried}"
                stopped = any(trial.state == "stopped" for trial in result.trials)
                caption = (
                    "Crosses were stopped early and show their last score."
                    if stopped
                    else "Every trial ran to its end."
                )
                figures.append(Figure(f"{result.name}: {knob}", drawing, label, caption))
    return figures


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
