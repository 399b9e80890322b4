"""The report of a study: quality and speed-up in every setting, and the range of each over all of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.report import latex, svg, wording, write_files
from orchestrator.report import markdown as marked
from orchestrator.report.accountings import UNITS, WAYS, Counted, accountings, columns
from orchestrator.report.details import Detail
from orchestrator.report.table import LETTERS, LEVEL, Row, difference, rows
from orchestrator.report.template import render
from orchestrator.study import Setting, Study

if TYPE_CHECKING:
    from rich.console import Console

Pair = tuple[str, str]


def tables(study: Study) -> list[Detail]:
    """What every form of the report shows."""
    return [_quality(study), *_by_setting(study), *_ranges(study)]


def sentences(study: Study) -> list[str]:
    """What holds over all settings: for each parameter-free row against each tuned one the range of the speed-up, and
    in how many settings it is behind or ahead, or as good as equal.
    """
    said = []
    for (row, over), found in _pairs(study).items():
        ratios = [each.ratios["search", "device s"] for _, each in found]
        signs = [_sign(setting, row, over) for setting, _ in found]
        ahead, behind = (sum(sign * which > 0 for sign in signs) for which in (1, -1))
        sure = [sum(sign == which for sign in signs) for which in (2, -2)]
        tested = [difference(setting.comparison, row, over) for setting, _ in found]
        level = sum(bool(each and each.equivalence_holm < LEVEL) for each in tested)
        said.append(
            f"The search of {over} took {_range(ratios)} the device time of training that {row} took, over "
            f"{len(found)} settings; {row} has the higher {study.measure} in {ahead} of them (significantly in "
            f"{sure[0]}) and the lower in {behind} (significantly in {sure[1]})"
            + (f", and is equivalent within {found[0][0].comparison.margin:g} in {level}." if level else ".")
        )
    return said


def write(study: Study, folder: Path) -> Path:
    """Write report.html, report.md, report.tex and study.json into `folder`, each at once or not at all; the path of
    the page.
    """
    made = [{"labels": each.labels, "comparison": each.comparison.name} for each in study.settings]
    files = {
        "study.json": json.dumps({"name": study.name, "settings": made}, indent=1, ensure_ascii=False) + "\n",
        "report.md": markdown(study),
        "report.tex": latex.tables([_what(study), *sentences(study)], tables(study)),
        "report.html": html(study),
    }
    return write_files(folder, files) / "report.html"


def markdown(study: Study) -> str:
    """A heading, the sentences and the tables."""
    lines = [f"# {study.name}", "", _what(study), ""]
    lines += [f"- {marked.escape(each)}" for each in sentences(study)]
    for detail in tables(study):
        lines += ["", f"## {detail.title}", "", marked.detail(detail), "", marked.escape(detail.caption)]
    return "\n".join(lines) + "\n"


def ranges(study: Study) -> str | None:
    """A plot of each pair's speed-ups, a point a setting; None where no pair is compared."""
    pairs = _pairs(study)
    if not pairs:
        return None

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        names = list(dict.fromkeys(row for row, _ in pairs))
        for place, ((row, over), found) in enumerate(pairs.items()):
            ratios, where = (
                [each.ratios["search", "device s"] for _, each in found],
                names.index(row) % len(svg.PALETTE),
            )
            axes.plot([min(ratios), max(ratios)], [place, place], color=svg.colour(where), linewidth=1.2)
            axes.plot(ratios, [place] * len(ratios), svg.MARKERS[where], color=svg.colour(where), markersize=6)
            axes.annotate(f"{row} against {over}: {_range(ratios)}", (0, place), (0, 9), _LEFT, "offset points")
        axes.axvline(1, color=svg.INK, linewidth=1, linestyle=(0, (5, 4)), alpha=0.35)
        axes.set_ylim(len(pairs) - 0.5, -0.9)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}x" if f"{value:e}"[0] in "235" else "")
        axes.set_xlabel("times less device time of training, log scale")

    return svg.svg("ranges", draw, height=0.9 + 0.55 * len(pairs))


_LEFT = ("axes fraction", "data")


def html(study: Study) -> str:
    """One page without scripts or network, with a link to the report of each comparison."""
    return render(
        "study.html",
        study.name,
        study=study,
        what=_what(study),
        tables=tables(study),
        sentences=sentences(study),
        ranges=ranges(study),
    )


def as_json(study: Study) -> dict[str, object]:
    """Each setting with its rows' first measure, and the speed-ups of each pair: way → unit → times."""
    found = []
    for setting in study.settings:
        pairs = [
            {
                "row": each.row,
                "over": each.over,
                "validation": each.validation,
                "times": {way: {unit: each.ratios[way, unit] for unit in UNITS} for way in WAYS},
            }
            for each in accountings(setting.comparison)
        ]
        measures = {result.name: result.measures[study.measure] for result in setting.comparison.results}
        found.append({"labels": setting.labels, study.measure: measures, "speed_ups": pairs})
    return {"name": study.name, "settings": found}


def show(study: Study, console: Console | None = None) -> None:
    """Print the tables and what can be read off them."""
    from rich.console import Console

    from orchestrator.report import terminal

    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = 180
    for each in tables(study)[:2]:
        console.print(terminal.detail(each, plain=not console.is_terminal))
        console.print()
    for sentence in sentences(study):
        console.print(sentence, soft_wrap=not console.is_terminal, markup=False)


def medians(study: Study) -> dict[str, float]:
    """The median speed-up of each pair, for each way and unit that it is counted in."""
    return {
        f"speed_up/{row}_over_{over}/{way}_{unit.replace(' ', '_')}": statistics.median(
            each.ratios[way, unit] for _, each in found
        )
        for (row, over), found in _pairs(study).items()
        for way, unit in columns()
    }


def _what(study: Study) -> str:
    *others, last = study.things
    over = f"{', '.join(others)} and {last}" if others else last
    return f"{study.settings[0].comparison.collection}: {len(study.settings)} comparisons, over {over}."


def _quality(study: Study) -> Detail:
    found = {setting.name: {row.name: row for row in rows(setting.comparison)} for setting in study.settings}
    tested = any(setting.comparison.differences for setting in study.settings)
    letters = dict(zip(study.rows, LETTERS, strict=False)) if tested and len(study.rows) <= len(LETTERS) else {}
    beaten = {
        (setting, row.name): "".join(sorted(letters.get(name, "") for name in _beaten(row, table.values())))
        for setting, table in found.items()
        for row in table.values()
    }
    widths = {name: max(len(beaten.get((setting, name), "")) for setting in found) for name in study.rows}
    cells = {
        setting: [
            wording.value(table[name], study.measure) + (f" {beaten[setting, name]:{_FILL}<{width}}" if width else "")
            if name in table
            else "–"
            for name, width in widths.items()
        ]
        for setting, table in found.items()
    }
    seeds = max((len(result.seeds) for each in study.settings for result in each.comparison.results), default=0)
    several = f", means over {seeds} seeds ± their standard deviation" if seeds else ", one seed"
    queries = study.settings[0].comparison.test_queries
    caption = f"{study.measure} on {queries:,} test queries{several}."
    if letters:
        caption += (
            " Behind it the letters of those that are significantly worse in that setting (randomization test, "
            f"p < {LEVEL} after Holm's correction over its pairs)."
        )
    heads = tuple(f"({letters[name]}) {name}" if letters else name for name in study.rows)
    return Detail("quality", "Quality", heads, cells, caption, of=", ".join(study.things))


_FILL = "\N{FIGURE SPACE}"  # as wide as a digit, so that numbers stand below one another


def _beaten(row: Row, table: Iterable[Row]) -> list[str]:
    """The rows of its comparison that a row is significantly better than."""
    return [each.name for each in table if each.letter and each.letter in row.beats]


def _by_setting(study: Study) -> Iterator[Detail]:
    pairs = _pairs(study)
    if not pairs:
        return
    cells: dict[str, list[str]] = {}
    for setting in study.settings:
        row = cells[setting.name] = []
        for (name, over), found in pairs.items():
            ratio = next((each.ratios["search", "device s"] for where, each in found if where is setting), None)
            told = difference(setting.comparison, name, over)
            mark = "*" if told and told.randomization_holm < LEVEL else ""
            row.append("–" if ratio is None else f"{wording.times(ratio)} ({_gap(setting, name, over)}{mark})")
    caption = (
        f"Device seconds of training of the tuned recipe's search, as it ran, over those of the parameter-free recipe, "
        f"and the difference in {study.measure}; * is significant (randomization test, p < {LEVEL} after Holm's "
        "correction over the pairs of that comparison)."
    )
    heads = tuple(f"{row} against {over}" for row, over in pairs)
    yield Detail("speed-ups", "How many times less", heads, cells, caption, of=", ".join(study.things))


def _ranges(study: Study) -> Iterator[Detail]:
    pairs = _pairs(study)
    if not pairs:
        return
    cells = {
        f"{row} against {over}": [_short([each.ratios[column] for _, each in found]) for column in columns()]
        for (row, over), found in pairs.items()
    }
    heads = tuple(f"{WAYS[way]}, {unit}" for way, unit in columns())
    caption = (
        "Least and most over the settings, in brackets the median. Device seconds are those of training, validation "
        "left out. Trials that were ended early are taken to their end at their own pace where every trial is counted "
        "to its end."
    )
    yield Detail("accountings", "Counted in several ways", heads, cells, caption, of="rows")


def _pairs(study: Study) -> dict[Pair, list[tuple[Setting, Counted]]]:
    found: dict[Pair, list[tuple[Setting, Counted]]] = {}
    for setting in study.settings:
        for each in accountings(setting.comparison):
            found.setdefault((each.row, each.over), []).append((setting, each))
    return found


def _gap(setting: Setting, row: str, over: str) -> str:
    return f"{_measured(setting, row) - _measured(setting, over):+.3f}".replace("-", "−")


def _sign(setting: Setting, row: str, over: str) -> int:
    """1 where the row is ahead, -1 where it is behind, twice that where it is significant; 0 where they are level."""
    gap = _measured(setting, row) - _measured(setting, over)
    told = difference(setting.comparison, row, over)
    sure = bool(told and told.randomization_holm < LEVEL)
    return 0 if gap == 0 else (1 if gap > 0 else -1) * (2 if sure else 1)


def _measured(setting: Setting, row: str) -> float:
    measure = setting.comparison.measures[0]
    return next(each.measures[measure] for each in setting.comparison.results if each.name == row)


def _range(ratios: list[float]) -> str:
    """ "2.1x to 3.4x (median 2.7x)"."""
    low, high = wording.times(min(ratios)), wording.times(max(ratios))
    return low if low == high else f"{low} to {high} (median {wording.times(statistics.median(ratios))})"


def _short(ratios: list[float]) -> str:
    """The same for a table: "2.1–3.4x (2.7x)"."""
    low, high = wording.times(min(ratios)), wording.times(max(ratios))
    return low if low == high else f"{low[:-1]}–{high} ({wording.times(statistics.median(ratios))})"
