"""How a comparison is put into words: numbers, knobs, and what the table says, the unwelcome part too."""

from __future__ import annotations

from typing import Any

from orchestrator.records import UNTRAINED, Comparison, Difference
from orchestrator.report.table import LEVEL, Row, SpeedUp, difference, rows

MANY = 3  # rows that are told of one by one
CAVEAT = "One seed: what another one would change is not known."
UNTESTED = "One seed; no test of significance is made, so a small difference may be chance."


def sentences(comparison: Comparison) -> list[str]:
    """What can be read off the table: each parameter-free recipe against each with knobs, all against untrained."""
    table, measure = rows(comparison), comparison.measures[0]
    named = {row.name: row for row in table}
    said = [
        against(row, speed_up, named[speed_up.over], measure, difference(comparison, row.name, speed_up.over))
        for row in table
        for speed_up in row.speed_ups
    ]
    for row in (row for row in table if row.kind == "parameter-free"):
        said += [
            f"{row.name} ran on {' and '.join(row.devices)}, {rival.name} on {' and '.join(rival.devices)}: "
            "their device seconds are not compared."
            for rival in table
            if rival.kind in ("tuned", "fixed") and rival.devices and row.devices and rival.devices != row.devices
        ]
    if taught := [row for row in table if row.teacher_seconds]:
        spent = sorted({seconds(row.teacher_seconds) for row in taught})
        said.append(
            f"{_names(taught)} learn{'s' if len(taught) == 1 else ''} from a teacher; the {' or '.join(spent)} "
            f"device seconds that it cost are in all runs of each."
        )
    if mined := sorted({seconds(row.mining_seconds) for row in table if row.mining_seconds}):
        said.append(
            f"The {' or '.join(mined)} device seconds that it took to mine negatives are in all runs of each row."
        )
    for kind, what in (
        ("generated", "generated queries alone, which nobody asked"),
        ("both", "generated queries beside the judged ones"),
    ):
        if learned := [row for row in table if row.queries == kind]:
            said.append(
                f"{_names(learned)} learn{'s' if len(learned) == 1 else ''} from {what}; the "
                f"{seconds(learned[0].generation_seconds)} device seconds that it took to make them are in all runs "
                "of each."
            )
    for base in (row for row in table if row.name == UNTRAINED):
        gaps = {row.name: base.measures[measure] - row.measures[measure] for row in table if not row.untrained}
        behind = {name: gap for name, gap in gaps.items() if gap >= 0.0005}
        if len(behind) > MANY:
            least, most = min(behind.values()), max(behind.values())
            gap = f"{least:.3f} to {most:.3f} {measure}"
            said.append(f"{len(behind)} of {len(gaps)} rows end {gap} below the untrained encoder.")
        else:
            said += [f"{name} ends {gap:.3f} {measure} below the untrained encoder." for name, gap in behind.items()]
    return [*said, *_tested(comparison)] if len(table) > 1 else said


def _tested(comparison: Comparison) -> list[str]:
    """What the tests found, in short."""
    found, measure = comparison.differences, comparison.measures[0]
    if not found:
        return [seeds(comparison, UNTESTED)]
    equal = [each for each in found if each.equivalence_holm < LEVEL]
    said = [
        f"{each.row} and {each.other} are equivalent within {comparison.margin:g} {measure} (two one-sided t-tests, p "
        f"{_compared(each.equivalence_holm)})."
        for each in equal[:MANY]
    ]
    if len(equal) > MANY:
        said = [f"{len(equal)} of {len(found)} pairs of rows are equivalent within {comparison.margin:g} {measure}."]
    return [
        *said,
        f"Letters behind {measure} name the rows that a row is better than: randomization test over "
        f"{found[0].queries:,} queries, p < {LEVEL} after Holm's correction for {len(found):,} pairs.",
        seeds(comparison),
    ]


def seeds(comparison: Comparison, of_one: str = CAVEAT) -> str:
    """How many seeds there are, and what was done with them; `of_one` is what is said of a single one."""
    further = further_seeds(comparison)
    if not further:
        return of_one
    first = next(result.seeds[0].seed for result in comparison.results if result.seeds)
    *most, last = map(str, [first, *further])
    return (
        f"Means over the seeds {', '.join(most)} and {last}, ± their standard deviation; a query's value in the tests "
        f"is its mean over them. Searches had the seed {first} alone, and costs are those of that seed."
    )


def further_seeds(comparison: Comparison) -> list[int]:
    """The seeds beside the first."""
    return next(([each.seed for each in result.seeds[1:]] for result in comparison.results if result.seeds), [])


def value(row: Row, measure: str) -> str:
    """A measure of a row: "0.5806", or "0.5806 ± 0.0094" over several seeds."""
    spread = f" ± {row.spread[measure]:.4f}" if measure in row.spread else ""
    return f"{row.measures[measure]:.4f}{spread}"


def probability(value: float) -> str:
    """A p-value: "0.032", "< 0.001"."""
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def _compared(value: float) -> str:
    """The same in a sentence: "= 0.032", "< 0.001"."""
    return probability(value) if value < 0.0005 else f"= {probability(value)}"


def _names(table: list[Row]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(row.name for row in table[:-1]), table[-1].name]))


def against(row: Row, speed_up: SpeedUp, rival: Row, measure: str, tested: Difference | None = None) -> str:
    """One parameter-free recipe against one with knobs, cost first, then quality and whether that may be chance."""
    ratio, difference = speed_up.ratio, speed_up.quality_difference
    tuned = f"tuned, {rival.trials} trials" if rival.kind == "tuned" else "one setting, not tuned"
    level, cheaper, behind = abs(difference) < 0.0005, ratio >= 1, difference < 0
    if times(ratio) == times(1.0):
        cost = "needs the device time of"
    else:
        cost = (
            f"needs {times(ratio)} less device time than" if cheaper else f"needs {times(1 / ratio)} the device time of"
        )
    joint = "and" if level or cheaper != behind else "but"
    quality = (
        f"is level on {measure}" if level else f"is {abs(difference):.3f} {measure} {'behind' if behind else 'ahead'}"
    )
    if tested and not level:
        chance = ", which may be chance" if tested.randomization_holm >= LEVEL else ""
        quality += f" (p {_compared(tested.randomization_holm)}{chance})"
    return f"{row.name} {cost} {rival.name} ({tuned}) {joint} {quality}."


def times(ratio: float) -> str:
    """A ratio: "8.3x", "120x"."""
    return f"{ratio:.1f}x" if ratio < 100 else f"{ratio:,.0f}x"


def seconds(value: float) -> str:
    """Device seconds with three significant digits or more: "0.42", "9.13", "58.1", "1,204"; an en dash for none."""
    if value == 0:
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def parameters(count: float) -> str:
    """How many parameters: "22.7 M", "90,112"."""
    millions = count / 1e6
    return f"{millions:.1f} M" if millions >= 0.1 else f"{count:,.0f}"


def percent(share: float) -> str:
    """A share: "100%", "12.5%", "0.42%"."""
    return f"{100 * share:.3g}%"


def signed(value: float, digits: int = 4) -> str:
    """A difference: "+0.0123", "−0.0040"; "+0.0000" on either side of zero."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def money(value: float | None) -> str:
    """An amount with two significant digits or more: "0.0038", "0.42", "1,204.50"; an en dash where it is not known."""
    if value is None:
        return "–"
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:#.2g}" if value >= 0.0001 else "< 0.0001"


def knobs(row: Row) -> str:
    """The knobs that were chosen: "margin 0.3, temperature 0.05"; "none" of a parameter-free recipe, or an en dash."""
    chosen = ", ".join(f"{name} {knob(value)}" for name, value in row.knobs)
    return chosen or ("none" if row.kind == "parameter-free" else "–")


def knob(value: float | int | str) -> str:
    """One value of a knob: "0.05", "2e-05", "rows"."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trials(row: Row) -> str:
    """How many trials ran: "10 (6 stopped early, 1 failed)"; an en dash for the untrained encoder."""
    if not row.trials:
        return "–"
    ends = [(row.stopped, "stopped early"), (row.failed, "failed")]
    said = ", ".join(f"{count} {how}" for count, how in ends if count)
    return f"{row.trials} ({said})" if said else str(row.trials)


def best(table: list[Row], measure: str) -> set[str]:
    """The names of the rows that share the highest value of a measure as it is printed."""
    shown = {row.name: f"{row.measures[measure]:.4f}" for row in table}
    top = max(shown.values(), key=float)
    return {name for name, value in shown.items() if value == top}


def cheapest(table: list[Row]) -> set[str]:
    """The names of the trained rows whose runs cost least, as it is printed."""
    shown = {row.name: seconds(row.all_seconds) for row in table if row.all_seconds > 0}
    least = min((row.all_seconds for row in table if row.all_seconds > 0), default=0.0)
    return {name for name, value in shown.items() if value == seconds(least)}


def what_was_run(comparison: Comparison) -> str:
    """Collection, encoder and seed in one line."""
    asked = comparison.train_queries, comparison.generated_queries
    counts = queries(*asked, comparison.validation_queries, comparison.test_queries)
    line = f"{comparison.collection}: {comparison.documents:,} documents, {counts}. Encoder {comparison.encoder}."
    if seeds := configured(comparison, "seeds"):
        *others, last = map(str, seeds)
        return f"{line} Seeds {', '.join(others)} and {last}." if others else f"{line} Seed {last}."
    seed = configured(comparison, "seed")
    return line if seed is None else f"{line} Seed {seed}."


def queries(training: int, generated: int, validation: int, test: int) -> str:
    """How many there are of each kind; where all that is trained on is generated, so is what is validated on."""
    if generated and not training:
        return f"{generated:,} generated training, {validation:,} generated validation and {test:,} test queries"
    more = f" and {generated:,} generated" if generated else ""
    return f"{training:,} training{more}, {validation:,} validation and {test:,} test queries"


def configured(comparison: Comparison, key: str) -> Any:
    """A value at the top of the configuration; None where it is not there."""
    import yaml

    try:
        value = yaml.safe_load(comparison.config)
    except yaml.YAMLError:
        return None
    return value.get(key) if isinstance(value, dict) else None
