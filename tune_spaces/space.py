"""What a tune space is: the knobs of a recipe, each with the values to try, a range to draw from, and their source."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIVEN = "given in the experiment"  # the source of values that are

Value = float | int | str
Point = dict[str, Value]  # a value for each knob, by its parameter


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, all values equally likely, or with `log` all orders of magnitude.

    Raises ValueError where it is empty, or logarithmic and not above 0.
    """

    low: float
    high: float
    log: bool = False
    source: str = GIVEN

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"a range must have a low that is less than its high, not {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, not at {self.low:g}")


@dataclass(frozen=True)
class Knob:
    """A parameter of a recipe's loss, or of training, with the values that a grid tries and their source.

    A search that draws takes values of `range`, or where there is none one of `values`. Raises ValueError where there
    is neither, or a value twice.
    """

    parameter: str
    values: tuple[Value, ...]
    source: str
    range: Range | None = None

    def __post_init__(self) -> None:
        if not (self.values or self.range) or len(set(self.values)) != len(self.values):
            raise ValueError(f'the knob "{self.parameter}" must have values, each once, not {list(self.values)}')

    @property
    def first(self) -> Value:
        """The value that stands for all: the commonest, or where there is only a range its lower end."""
        if self.values:
            return self.values[0]
        assert self.range is not None
        return self.range.low


@dataclass(frozen=True)
class TuneSpace:
    """The knobs of one recipe."""

    recipe: str
    knobs: tuple[Knob, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that are searched."""
        return tuple(knob.parameter for knob in self.knobs)

    @property
    def first(self) -> Point:
        """The first value of each knob."""
        return {knob.parameter: knob.first for knob in self.knobs}

    @property
    def finite(self) -> bool:
        """Whether no knob has a range: then the grid has all that can be drawn."""
        return all(knob.range is None for knob in self.knobs)

    def grid(self) -> tuple[Point, ...]:
        """Every combination of the knobs' values; the last knob turns fastest.

        Raises ValueError for a knob that has a range alone.
        """
        if bare := [knob.parameter for knob in self.knobs if not knob.values]:
            raise ValueError(f'the knob "{bare[0]}" has a range, and a grid takes values')
        settings = itertools.product(*(knob.values for knob in self.knobs))
        return tuple(dict(zip(self.parameters, setting, strict=True)) for setting in settings)

    def with_values(self, values: Mapping[str, Sequence[Value] | Range]) -> TuneSpace:
        """The same knobs with other values, or another range, for those that are named.

        Raises ValueError for a parameter that is no knob here, and for values that are none or doubled.
        """
        unknown = [parameter for parameter in values if parameter not in self.parameters]
        if unknown:
            raise ValueError(f'"{unknown[0]}" is not a knob of {self.recipe}; its knobs: {", ".join(self.parameters)}')
        chosen = tuple(
            given_knob(knob.parameter, values[knob.parameter]) if knob.parameter in values else knob
            for knob in self.knobs
        )
        return dataclasses.replace(self, knobs=chosen)


def given_knob(parameter: str, given: Sequence[Value] | Range) -> Knob:
    """A knob with the values, or the range, that an experiment gives."""
    if isinstance(given, Range):
        return Knob(parameter, (), GIVEN, given)
    return Knob(parameter, tuple(given), GIVEN)
