"""The cost ledger: what it comes to by stage and recipe, what each recipe is charged with, and what that is worth.

What recipes share is in the ledger once, and each recipe that needs it is charged all of it: that is what it takes to
train the recipe alone. Beside that stands the part that falls to it where all who need it share it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.records import Comparison, Cost, Prices, Result


@dataclass(frozen=True)
class Line:
    """The entries of one stage, recipe and kind of device, summed.

    `utilisation` is the share of the devices' rate of matrix products, None where that was not measured or nothing
    went through an encoder. `money` is in the currency of the prices, None without one.
    """

    cost: Cost
    utilisation: float | None
    money: float | None


@dataclass(frozen=True)
class Charge:
    """What a recipe is charged with, in device seconds: of its `own` runs, `in_full` with all that it shares, and
    `divided` with the part that falls to it of what is shared.

    `among` has of each shared thing how many recipes need it; several numbers where parts of it differ. Money is in the
    currency of the prices, None without one.
    """

    own: float
    in_full: float
    divided: float
    among: Mapping[str, tuple[int, ...]]
    money: float | None
    money_divided: float | None


def ledger(comparison: Comparison) -> list[Cost]:
    """The ledger summed over trials: one entry per stage, recipe and kind of device; what all share comes first."""
    return [line.cost for line in lines(comparison)]


def lines(comparison: Comparison) -> list[Line]:
    """The same, with what the devices were used to and what it cost."""
    groups: dict[tuple[str, str | None, str], list[Cost]] = {}
    for cost in comparison.costs:
        groups.setdefault((cost.stage, cost.recipe, cost.device), []).append(cost)
    order: list[str | None] = [None, *(result.name for result in comparison.results)]
    place = {recipe: at for at, recipe in enumerate(order)}
    summed = [
        Line(
            _sum(dataclasses.replace(costs[0], trial=None), costs[1:]),
            utilisation(costs, comparison.peak_flops),
            money(costs, comparison.prices),
        )
        for costs in groups.values()
    ]
    return sorted(summed, key=lambda line: place.get(line.cost.recipe, len(order)))


def ledger_total(comparison: Comparison) -> Line:
    """The whole ledger on one line."""
    costs = comparison.costs
    return Line(total(costs), utilisation(costs, comparison.peak_flops), money(costs, comparison.prices))


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of ledger entries, of whatever stage, recipe and device."""
    return _sum(Cost(stage="total", device=""), costs)


def utilisation(costs: Iterable[Cost], peak_flops: Mapping[str, float]) -> float | None:
    """The share of the time that devices were held which their FLOPs take at the rate of matrix products.

    None where there are no FLOPs, or the rate of a device and precision that had some is not known.
    """
    needed = held = 0.0
    for cost in costs:
        held += cost.device_seconds
        if cost.flops:
            rate = peak_flops.get(f"{cost.device} {cost.precision}")
            if not rate:
                return None
            needed += cost.flops / rate
    return needed / held if needed and held else None


def money(costs: Iterable[Cost], prices: Prices | None) -> float | None:
    """What the devices cost, at their price an hour; a kind without a price is in that of the others.

    None where no kind has a price.
    """
    if prices is None:
        return None
    hourly = {"cpu": prices.cpu, "cuda": prices.cuda}
    priced = [(cost.device_seconds, price) for cost in costs if (price := hourly.get(cost.device)) is not None]
    return sum(seconds / 3600 * price for seconds, price in priced) if priced else None


def own(result: Result, comparison: Comparison) -> list[Cost]:
    """The entries of a recipe itself. Evaluation on the test split is left out: every recipe pays it alike."""
    return [comparison.costs[place] for place in _own(result, comparison.costs)]


def _own(result: Result, costs: Sequence[Cost]) -> list[int]:
    """Places in the ledger; without the runs with further seeds, which nobody needs to train the recipe."""
    again = {seeded.trial.name for seeded in result.seeds[1:]}
    return [
        place
        for place, cost in enumerate(costs)
        if cost.recipe == result.name and cost.stage != "evaluation" and cost.trial not in again
    ]


def shared(result: Result, comparison: Comparison) -> list[Cost]:
    """The entries that a recipe needs beside its own: negatives mined, a teacher asked and, where it is a row, trained
    with all that this took, queries generated. What two stages read is there once.

    Tokenizing is left out like evaluation, and so is what was mined on another kind of device than the recipe trained
    on: their seconds are not one unit.
    """
    return [comparison.costs[place] for place in _shared(result, comparison)]


def _shared(result: Result, comparison: Comparison) -> list[int]:
    """Places in the ledger."""
    stages = {"mining"} if result.trials else set()
    stages |= {"teaching"} if result.taught else set()
    stages |= {"generation"} if result.queries != "judged" else set()
    devices = {cost.device for cost in own(result, comparison)}
    found = [
        place
        for place, cost in enumerate(comparison.costs)
        if cost.stage in stages
        and cost.recipe is None
        and (not cost.queries or result.queries in cost.queries)
        and (cost.stage != "mining" or cost.device in devices)
    ]
    if teacher := _teacher(result, comparison):
        found += [*_own(teacher, comparison.costs), *_shared(teacher, comparison)]
    made = {comparison.costs[place].made or str(place): place for place in reversed(found)}  # the first of each
    return sorted(made.values())


def _teacher(result: Result, comparison: Comparison) -> Result | None:
    """The row that a recipe learns from."""
    if not result.taught or comparison.teacher == result.name:
        return None
    return next((each for each in comparison.results if each.name == comparison.teacher), None)


def charges(comparison: Comparison) -> dict[str, Charge]:
    """What each recipe is charged with that shares something, be it that it teaches others; row → charge.

    All that is `divided`, with the runs of recipes that share nothing, is what was spent on training.
    """
    costs, prices = comparison.costs, comparison.prices
    needed = {result.name: _shared(result, comparison) for result in comparison.results}
    users = Counter(place for places in needed.values() for place in places)
    users.update([place for place in users if costs[place].recipe])  # the row that teaches needs its training too
    found = {}
    for result in comparison.results:
        mine = _own(result, costs)
        places = [*mine, *needed[result.name]]
        if not any(place in users for place in places):
            continue
        among: dict[str, set[int]] = {}
        for place in needed[result.name]:
            cost = costs[place]
            among.setdefault(cost.stage if cost.recipe is None else cost.recipe, set()).add(users[place])
        divided = [_part(costs[place], 1 / users.get(place, 1)) for place in places]
        found[result.name] = Charge(
            own=_seconds(costs[place] for place in mine),
            in_full=_seconds(costs[place] for place in places),
            divided=_seconds(divided),
            among={name: tuple(sorted(numbers)) for name, numbers in among.items()},
            money=money((costs[place] for place in places), prices),
            money_divided=money(divided, prices),
        )
    return found


def _seconds(costs: Iterable[Cost]) -> float:
    return sum(cost.device_seconds for cost in costs)


def _part(cost: Cost, share: float) -> Cost:
    return dataclasses.replace(cost, device_seconds=cost.device_seconds * share)


def _sum(first: Cost, others: Iterable[Cost]) -> Cost:
    for other in others:
        first = dataclasses.replace(
            first,
            devices=max(first.devices, other.devices),
            device_seconds=first.device_seconds + other.device_seconds,
            wall_seconds=first.wall_seconds + other.wall_seconds,
            examples=first.examples + other.examples,
            tokens=first.tokens + other.tokens,
            flops=first.flops + other.flops,
            peak_bytes=max(first.peak_bytes, other.peak_bytes),
            joules=first.joules + other.joules,
        )
    return first
