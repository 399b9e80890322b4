"""The cost ledger as it is printed: a column stands where one of its lines has something to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from orchestrator.records import Comparison
from orchestrator.report import wording
from orchestrator.report.details import Detail
from orchestrator.report.ledger import Line, charges, ledger_total, lines


@dataclass(frozen=True)
class LedgerTable:
    """`groups` has for each recipe its stages, each with the kind of device and the cells under `heads`."""

    heads: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, str, tuple[str, ...]], ...]], ...]
    total: tuple[str, ...]
    devices: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Column:
    """`note` says what it counts; a column with one is left out where no line has a value."""

    head: str
    cell: Callable[[Line], str]
    note: str = ""


def _columns(comparison: Comparison) -> list[_Column]:
    currency = comparison.prices.currency if comparison.prices else ""
    return [
        _Column("device s", lambda line: wording.seconds(line.cost.device_seconds)),
        _Column("wall s", lambda line: wording.seconds(line.cost.wall_seconds)),
        _Column("examples", lambda line: f"{line.cost.examples:,}"),
        _Column("tokens", lambda line: f"{line.cost.tokens:,}"),
        _Column("model TFLOPs", lambda line: f"{line.cost.flops / 1e12:,.1f}"),
        _Column(
            "of the products' rate",
            lambda line: "–" if line.utilisation is None else f"{line.utilisation:.1%}",
            "Of the products' rate: the time that these FLOPs take at the rate at which the devices multiply matrices, "
            "measured apart, over the time that the devices were held.",
        ),
        _Column(
            "peak memory, GB",
            lambda line: f"{line.cost.peak_bytes / 1e9:.2f}" if line.cost.peak_bytes else "–",
            "Peak memory is the largest of any one process: its resident set, or on a GPU what its tensors hold.",
        ),
        _Column(
            "energy, Wh",
            lambda line: wording.seconds(line.cost.joules / 3600),
            "Energy is that of whole CPU packages or GPU boards, whatever else ran on them; memory and the rest of the "
            "machine are not in it.",
        ),
        _Column(
            f"cost, {currency}",
            lambda line: wording.money(line.money),
            "The cost is that of the device seconds at the prices that the experiment names.",
        ),
    ]


def ledger_table(comparison: Comparison) -> LedgerTable | None:
    """The ledger; None where it is empty."""
    found = lines(comparison)
    if not found:
        return None
    columns = [each for each in _columns(comparison) if not each.note or {each.cell(line) for line in found} != {"–"}]

    def cells(line: Line) -> tuple[str, ...]:
        return tuple(column.cell(line) for column in columns)

    return LedgerTable(
        heads=tuple(column.head for column in columns),
        groups=tuple(
            (recipe or "shared", tuple((line.cost.stage, line.cost.device, cells(line)) for line in group))
            for recipe, group in groupby(found, lambda line: line.cost.recipe)
        ),
        total=cells(ledger_total(comparison)),
        devices=tuple(sorted({line.cost.device for line in found})),
        notes=tuple(column.note for column in columns if column.note),
    )


def shared_costs(comparison: Comparison) -> Iterator[Detail]:
    """What recipes share, charged in full and divided; nothing where they share nothing."""
    found = charges(comparison)
    if not found:
        return
    heads = ["own runs, device s", "charged in full", "divided", "among"]
    if comparison.prices:
        currency = comparison.prices.currency
        heads += [f"{currency}, in full", f"{currency}, divided"]
    cells = {}
    for name, charge in found.items():
        among = ", ".join(f"{what} {' or '.join(map(str, numbers))}" for what, numbers in charge.among.items())
        cells[name] = [*map(wording.seconds, (charge.own, charge.in_full, charge.divided)), among or "–"]
        if comparison.prices:
            cells[name] += [wording.money(charge.money), wording.money(charge.money_divided)]
    caption = (
        "Device seconds of a recipe's own runs; these with all that it shares with others (mined negatives, generated "
        "queries, a teacher and its training), as in all runs above, since that is what it takes to train it alone; "
        "and with its part, if what is shared is divided among the recipes that need it, a row that teaches being one "
        "of these. Tokenizing and the evaluation, which every recipe pays alike, are in none of them."
    )
    yield Detail("shared-costs", "What recipes share", tuple(heads), cells, caption, of="row")
