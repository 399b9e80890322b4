"""The sections of the page between the table of results and the ledger: figures, and tables beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.records import Comparison, Result
from orchestrator.report import plots, plots_detail, wins, wording
from orchestrator.report.details import Detail, details, importance_caption, queries
from orchestrator.report.efficiency import families
from orchestrator.report.importance import importances
from orchestrator.report.table import rows


@dataclass(frozen=True)
class Figure:
    """A plot with its title, the words that stand for it where it cannot be seen, a caption, and a table that unfolds
    below it.
    """

    title: str
    drawing: str
    label: str
    caption: str
    table: Detail | None = None


@dataclass(frozen=True)
class Section:
    """A heading of the page, by `short` in its contents; below its figures are some that unfold."""

    name: str
    title: str
    short: str
    figures: list[Figure]
    tables: list[Detail]
    folded: list[Figure]

    @property
    def beside(self) -> bool:
        """Whether its tables stand beside its figure: there is one, and names are short enough."""
        names = [name for table in self.tables for name in table.cells]
        return len(self.figures) == 1 and bool(names) and max(map(len, names)) <= _SHORT


_SHORT = 30  # characters


def sections(comparison: Comparison) -> list[Section]:
    """Those that there is something for, in the order of the page."""
    tables: dict[str, list[Detail]] = {}
    for detail in details(comparison):
        tables.setdefault(detail.name, []).append(detail)
    alone = [result for result in comparison.results if not result.lesser]
    lesser = [result for result in comparison.results if result.lesser]
    parts: list[tuple[str, str, str, Iterable[Figure | None]]] = [
        ("cost", "Quality and cost", "Cost", (_quality_and_cost(comparison), _speed_ups(comparison))),
        ("accountings", "How many times less, counted in several ways", "Speed-up", ()),
        ("differences", "Is the difference real?", "Differences", ()),
        ("wins", "Query by query", "Queries", _waterfalls(comparison)),
        ("shares", "How much data it takes", "Data", (_shares(comparison),)),
        ("encoders", "The encoders of the queries", "Encoders", (_sizes(comparison),)),
        ("index", "What the index finds, and how fast", "Index", ()),
        ("training", "Training and search", "Training", (_learning_curves(comparison), *_searches(comparison, alone))),
    ]
    folded = {"training": _searches(comparison, lesser)}
    found = [
        Section(name, title, short, _drawn(figures), tables.get(name, []), _drawn(folded.get(name, ())))
        for name, title, short, figures in parts
    ]
    return [section for section in found if section.figures or section.tables]


def _drawn(figures: Iterable[Figure | None]) -> list[Figure]:
    return [figure for figure in figures if figure]


def _quality_and_cost(comparison: Comparison) -> Figure | None:
    measure = comparison.measures[0]
    places = "; ".join(
        f"{row.name} {row.measures[measure]:.4f} at {wording.seconds(row.all_seconds)} s"
        for row in rows(comparison)
        if not row.untrained
    )
    label = f"{measure} on the test queries against device seconds of all runs: {places}"
    caption = (
        f"{measure} on the test queries. Up is better, left is cheaper. "
        "The cost is that of every run that the recipe needed, its search included."
    )
    return _figure("Quality against cost", plots.quality_and_cost(comparison), label, caption)


def _speed_ups(comparison: Comparison) -> Figure | None:
    ratios = "; ".join(
        f"{row.name} {wording.times(up.ratio)} less than {up.over}" for row in rows(comparison) for up in row.speed_ups
    )
    label = f"Device seconds of the other over those of the parameter-free recipe: {ratios}"
    caption = (
        f"The mark at 1x is equal cost. Beside each bar, what the saving costs or brings in {comparison.measures[0]}."
    )
    return _figure("How much less device time", plots.speed_ups(comparison), label, caption)


def _waterfalls(comparison: Comparison) -> list[Figure]:
    """One a pair, all of one scale, each with the queries that differ most."""
    pairs, measure = wins.pairs(comparison), comparison.measures[0]
    reach, figures = plots_detail.reach(pairs), []
    for pair in pairs:
        counts = f"better on {len(pair.wins):,}, as good on {pair.ties:,}, worse on {len(pair.losses):,}"
        label = f"Difference in {measure} on each test query, {pair.row} less {pair.other}: {counts}"
        mean = wording.signed(pair.mean)
        caption = f"{pair.row} is {counts} of {len(pair.queries):,} queries; {mean} {measure} on average."
        drawing = plots_detail.waterfall(comparison, pair, reach)
        table = queries(comparison, pair) if pair.greatest else None
        figures.append(Figure(f"{pair.row} against {pair.other}", drawing, label, caption, table))
    return figures


def _shares(comparison: Comparison) -> Figure | None:
    measure = comparison.measures[0]
    lines = "; ".join(
        f"{family.name} " + ", ".join(f"{value:.4f} at {wording.percent(share)}" for share, value in family.points)
        for family in families(comparison)
    )
    label = f"{measure} on the test queries against the share of the judged training queries: {lines}"
    caption = (
        f"{measure} on the test queries, of rows that differ in nothing but the share of the judged queries that they "
        "learn from; a smaller share is part of a larger one."
    )
    return _figure("Quality against training data", plots_detail.quality_and_share(comparison), label, caption)


def _sizes(comparison: Comparison) -> Figure | None:
    measure = comparison.measures[0]
    found = {result.name: result for result in comparison.results if result.encoder}
    places: list[str] = []
    waits: dict[tuple[int, str], list[float]] = {}
    for name, result in found.items():
        assert result.encoder is not None
        size = wording.parameters(result.encoder.parameters)
        places.append(f"{name} {result.measures[measure]:.4f} with {size}, {result.encoder.median_ms:.2f} ms")
        waits.setdefault((result.encoder.parameters, size), []).append(result.encoder.median_ms)
    label = f"{measure} on the test queries against parameters of the query encoder: {'; '.join(places)}"
    latency = "; ".join(
        f"{size}: {min(ms):.2f} ms"
        if f"{min(ms):.2f}" == f"{max(ms):.2f}"
        else f"{size}: {min(ms):.2f} to {max(ms):.2f} ms"
        for (_, size), ms in sorted(waits.items())
    )
    caption = (
        f"{measure} on the test queries. Up is better, left is smaller. One query takes, by parameters: {latency}."
    )
    return _figure("Quality against size", plots_detail.quality_and_size(comparison), label, caption)


def _learning_curves(comparison: Comparison) -> Figure | None:
    curves = "; ".join(
        f"{result.name} ends at {trial.validation:.4f}"
        for result in comparison.results
        if (trial := result.winning_trial) is not None
    )
    label = f"Validation nDCG@10 against device seconds of a run, the chosen run of each recipe: {curves}"
    less = " Dashed: trained on a smaller share." if any(result.lesser for result in comparison.results) else ""
    caption = f"The chosen run of each recipe, and its other trials faint. Measured on held-out training queries.{less}"
    return _figure("Learning curves", plots.learning_curves(comparison), label, caption)


def _searches(comparison: Comparison, results: Iterable[Result]) -> list[Figure | None]:
    """One figure per knob of each recipe that tried several settings, and one of how much each knob matters."""
    figures: list[Figure | None] = []
    for result in results:
        if shares := importances(result):
            label = f"Importance of the knobs of {result.name}: " + "; ".join(
                f"{knob} {share:.0%}" for knob, share in shares.items()
            )
            importance = plots_detail.knob_importance(comparison, result, shares)
            figures.append(Figure(f"{result.name}: which knob matters", importance, label, importance_caption(result)))
        names = dict.fromkeys(name for trial in result.trials for name in trial.parameters)
        for knob in names if len(result.trials) > 1 else ():
            tried = "; ".join(
                f"{wording.knob(trial.parameters[knob])}: "
                + (f"failed, {trial.reason}" if trial.state == "failed" else f"{trial.validation:.4f}")
                + (", stopped early" if trial.state == "stopped" else "")
                for trial in result.trials
                if knob in trial.parameters
            )
            label = f"Trials of {result.name}, {knob} against validation nDCG@10: {tried}"
            states, said = [trial.state for trial in result.trials], []
            if "stopped" in states:
                said.append("Crosses were stopped early and show their last score.")
            if failed := states.count("failed"):
                said.append(f"{failed} of {len(states)} trials failed, and {'has' if failed == 1 else 'have'} none.")
            caption = " ".join(said) or "Every trial ran to its end."
            drawing = plots.knob_trials(comparison, result, knob)
            figures.append(_figure(f"{result.name}: {knob}", drawing, label, caption))
    return figures


def _figure(title: str, drawing: str | None, label: str, caption: str) -> Figure | None:
    return None if drawing is None else Figure(title, drawing, label, caption)
