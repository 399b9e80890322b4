"""The table of a comparison on a terminal: rich where there is one, plain text in a job log."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.records import Comparison
from orchestrator.report import wording
from orchestrator.report.details import Detail, details
from orchestrator.report.table import Row, SpeedUp, rows

CAPTION = "s: device seconds, devices times wall seconds; (n): trials stopped early"
SPEED_UP_CAPTION = (
    "\nspeed-up: device seconds of the tuned recipe's runs over those of this one's (and the difference in {})"
)
WIDE, WIDE_WITH_LETTERS = 110, 126  # columns of a terminal from which on there is room for the speed-ups
NAME, KNOB = 16, 8  # letters to which a name, and what is said of a knob, may be folded
MONEY = 9  # more of them for what it costs in a currency


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table and what can be read off it; where there is no terminal, 132 columns wide."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = 132
    wide = console.width >= (WIDE_WITH_LETTERS if comparison.differences else WIDE) + MONEY * bool(comparison.prices)
    plain = not console.is_terminal
    shown = table(comparison, plain=plain, speed_ups=wide)
    if wide and _squeezed(shown, console):
        shown = table(comparison, plain=plain, speed_ups=False)  # each of them is a sentence below
    console.print(shown)
    for each in (each for each in details(comparison) if each.of == "recipe"):  # pairs of rows are on the page
        console.print()
        console.print(detail(each, plain=not console.is_terminal))
    console.print()
    for sentence in wording.sentences(comparison):
        console.print(Text(sentence), soft_wrap=not console.is_terminal)


def _squeezed(shown: Table, console: Console) -> bool:
    """Whether names would be folded to some letters, even if knobs were."""
    whole = console.measure(shown, options=console.options.update(max_width=1000)).maximum
    names, knobs = (
        max(len(str(cell)) for cell in column.cells) for column in shown.columns if column.overflow == "fold"
    )
    return whole - max(0, names - NAME) - max(0, knobs - KNOB) > console.width


def table(comparison: Comparison, *, plain: bool = False, speed_ups: bool = True) -> Table:
    """The table, the best value of each column bold; fits 120 columns (132 with letters), or 80 without speed-ups."""
    lines = rows(comparison)
    rivals = dict.fromkeys(speed_up.over for row in lines for speed_up in row.speed_ups) if speed_ups else {}
    shown = _empty(plain, CAPTION + (SPEED_UP_CAPTION.format(comparison.measures[0]) if rivals else ""))
    if any(row.letter for row in lines):
        shown.add_column("", no_wrap=True)
    whole = 24 if speed_ups else 16  # letters of a name that are not folded
    shown.add_column("recipe", overflow="fold", no_wrap=max(len(row.name) for row in lines) <= whole)
    shown.add_column("knobs", overflow="fold")
    shown.add_column("trials", justify="right", no_wrap=True)
    for measure in comparison.measures:
        shown.add_column(Text(measure), justify="right", no_wrap=True)
    shown.add_column("chosen\nrun, s", justify="right", no_wrap=True)
    shown.add_column("all\nruns, s", justify="right", no_wrap=True)
    if comparison.prices:
        shown.add_column(Text(f"cost,\n{comparison.prices.currency}"), justify="right", no_wrap=True)
    for rival in rivals:
        shown.add_column(Text(f"speed-up over\n{rival}"), justify="right", no_wrap=True)
    best = {measure: wording.best(lines, measure) for measure in comparison.measures}
    cheapest = wording.cheapest(lines)
    letters = max(len(row.beats) for row in lines)
    for row in lines:
        cells = [
            *([Text(row.letter)] if row.letter else []),
            Text(row.name),
            Text(wording.knobs(row)),
            Text(_trials(row)),
        ]
        first, *others = (_cell(wording.value(row, name), row.name in best[name]) for name in comparison.measures)
        cells += [first + Text(f" {row.beats:<{letters}}") if letters else first, *others]
        cells += [
            Text(wording.seconds(row.winner_seconds)),
            _cell(wording.seconds(row.all_seconds), row.name in cheapest),
        ]
        cells += [Text(wording.money(row.money))] if comparison.prices else []
        over = {speed_up.over: speed_up for speed_up in row.speed_ups}
        cells += [Text(_speed_up(over[rival]) if rival in over else "–") for rival in rivals]
        shown.add_row(*cells)
    return shown


def detail(detail: Detail, *, plain: bool) -> Table:
    """The table of a detail."""
    shown = _empty(plain, detail.caption)
    shown.add_column(detail.of, overflow="fold")
    for head in detail.heads:
        shown.add_column(Text(head), justify="right")
    for name, cells in detail.cells.items():
        shown.add_row(Text(name), *map(Text, cells))
    return shown


def _empty(plain: bool, caption: str) -> Table:
    return Table(
        box=None if plain else box.SIMPLE_HEAD,
        padding=(0, 2 if plain else 1, 0, 0),
        pad_edge=False,
        header_style="bold",
        caption=Text(caption, justify="left"),
        caption_justify="left",
    )


def _speed_up(speed_up: SpeedUp) -> str:
    """ "6.2x (−0.003)": how many times cheaper, and the difference on the first measure."""
    difference = f"{speed_up.quality_difference:+.3f}".replace("-", "−")
    return f"{wording.times(speed_up.ratio)} ({difference})"


def _trials(row: Row) -> str:
    if not row.stopped:
        return wording.trials(row)
    return f"{row.trials} ({row.stopped}, {row.failed} failed)" if row.failed else f"{row.trials} ({row.stopped})"


def _cell(text: str, bold: bool) -> Text:
    return Text(text, style="bold" if bold else "")
