"""The rows of a comparison: what each recipe reached, and what it cost to get there.

Every cost is a query over the ledger (`report.ledger`): an entry belongs to the recipe that it names, and evaluation on
the test split is left out because every recipe pays it alike. What it cost to mine negatives, to ask a teacher, and to
train it where it is a row, is in the ledger once, and each recipe that learns from it is charged all of it: that is
what it takes to train the recipe alone. The speed-up of a parameter-free recipe over a tuned one is the device seconds
of all runs that the tuned one needed, over those of all runs that the parameter-free one needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.records import TEACHER, UNTRAINED, Comparison, Difference, Result
from orchestrator.report.ledger import money, own, shared

LEVEL = 0.05  # of p-values
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_RIVALS = 4  # where there are more recipes with knobs, those that were tuned are compared with alone


@dataclass(frozen=True)
class SpeedUp:
    """A parameter-free recipe against a tuned one.

    `ratio` is how many times the device seconds of this recipe the other one needed. `quality_difference` is this one's
    first measure minus the other's: negative where this one is behind.
    """

    over: str
    ratio: float
    quality_difference: float


@dataclass(frozen=True)
class Row:
    """One recipe. `winner_seconds` and `all_seconds` are device seconds of the winning run and of all its runs, with
    `teacher_seconds`, what it took to train and ask the teacher that it learns from, `generation_seconds`, what it
    took to make the queries that it learns from beside those that people asked, or in their place (`queries`), and
    `mining_seconds`, what it took to rank its negatives. `money` is what all of these cost, None without prices.

    `knobs` are those that validation chose. `devices` are the kinds of device that the runs were counted on. `letter`
    stands for the row where others are significantly better than it, and `beats` are the letters of those that it is
    better than itself, on the first measure; both are empty where that was not tested. `spread` is the standard
    deviation of each measure over the seeds, empty where there is one; what runs with further seeds cost is no part of
    any seconds here, since nobody needs them to train the recipe.
    """

    name: str
    untrained: bool
    parameter_free: bool
    knobs: tuple[tuple[str, float | int | str], ...]
    measures: dict[str, float]
    winner_seconds: float
    all_seconds: float
    finished: int
    stopped: int
    devices: tuple[str, ...]
    speed_ups: tuple[SpeedUp, ...] = ()
    teacher_seconds: float = 0.0
    generation_seconds: float = 0.0
    mining_seconds: float = 0.0
    money: float | None = None
    queries: str = "judged"
    letter: str = ""
    beats: str = ""
    spread: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: int = 0

    @property
    def label(self) -> str:
        """The name, with the letter before it."""
        return f"({self.letter}) {self.name}" if self.letter else self.name

    @property
    def trials(self) -> int:
        return self.finished + self.stopped + self.failed

    @property
    def kind(self) -> str:
        """How the recipe came to its knobs: "untrained", "parameter-free", "tuned", or "fixed" where one was tried."""
        if self.untrained:
            return UNTRAINED
        if self.parameter_free:
            return "parameter-free"
        return "tuned" if self.trials > 1 else "fixed"


def rows(comparison: Comparison) -> list[Row]:
    """One row per result, in the order of the comparison."""
    plain = _lettered([_row(result, comparison) for result in comparison.results], comparison)
    rivals = [row for row in plain if row.kind in ("tuned", "fixed")]
    if len(rivals) > MOST_RIVALS:
        rivals = [row for row in rivals if row.kind == "tuned"]
    share = {result.name: result.share for result in comparison.results}  # of the data; of others, cost is no contest
    return [
        dataclasses.replace(
            row,
            speed_ups=tuple(
                _speed_ups(
                    row, [each for each in rivals if share[each.name] == share[row.name]], comparison.measures[0]
                )
            ),
        )
        if row.kind == "parameter-free"
        else row
        for row in plain
    ]


def difference(comparison: Comparison, row: str, other: str) -> Difference | None:
    """What was tested of two rows, whichever way round; None where nothing was."""
    return next((each for each in comparison.differences if {each.row, each.other} == {row, other}), None)


def _lettered(table: list[Row], comparison: Comparison) -> list[Row]:
    if not comparison.differences or len(table) > len(LETTERS):
        return table
    letters = dict(zip((row.name for row in table), LETTERS, strict=False))
    beats: dict[str, str] = dict.fromkeys(letters, "")
    for each in comparison.differences:
        if each.randomization_holm < LEVEL:
            better, worse = (each.row, each.other) if each.mean > 0 else (each.other, each.row)
            beats[better] = "".join(sorted(beats[better] + letters[worse]))
    return [dataclasses.replace(row, letter=letters[row.name], beats=beats[row.name]) for row in table]


def _row(result: Result, comparison: Comparison) -> Row:
    mine, needed = own(result, comparison), shared(result, comparison)

    def seconds(stage: str) -> float:
        return sum(cost.device_seconds for cost in needed if cost.stage == stage and cost.recipe is None)

    winner = result.winning_trial
    states = [trial.state for trial in result.trials]
    return Row(
        name=result.name,
        untrained=result.recipe in (UNTRAINED, TEACHER),
        parameter_free=result.parameter_free,
        knobs=tuple(winner.parameters.items()) if winner else (),
        measures=result.measures,
        winner_seconds=sum(cost.device_seconds for cost in mine if winner and cost.trial == winner.name),
        all_seconds=sum(cost.device_seconds for cost in (*mine, *needed)),
        finished=states.count("finished"),
        stopped=states.count("stopped"),
        failed=states.count("failed"),
        devices=tuple(sorted({cost.device for cost in (*mine, *needed)})),
        teacher_seconds=seconds("teaching") + sum(cost.device_seconds for cost in needed if cost.recipe),
        generation_seconds=seconds("generation"),
        mining_seconds=seconds("mining"),
        money=money((*mine, *needed), comparison.prices),
        queries=result.queries,
        spread={measure: result.spread(measure) or 0.0 for measure in result.measures} if result.seeds else {},
    )


def _speed_ups(row: Row, rivals: list[Row], measure: str) -> Iterable[SpeedUp]:
    for rival in rivals:
        # Seconds of a CPU core and of a GPU are not one unit, and nothing can be said of a run that cost nothing.
        if row.devices == rival.devices and row.all_seconds > 0 and rival.all_seconds > 0:
            difference = row.measures[measure] - rival.measures[measure]
            yield SpeedUp(rival.name, rival.all_seconds / row.all_seconds, difference)
