"""What a tune space is: the knobs of a recipe, each with the values to try and where they come from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIVEN = "given in the experiment"  # the source of values that are


@dataclass(frozen=True)
class Knob:
    """A parameter of a recipe's loss, the values to try, and the source of the range.

    Raises ValueError where there is no value, or one twice.
    """

    parameter: str
    values: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(f'the knob "{self.parameter}" must have values, each once, not {list(self.values)}')


@dataclass(frozen=True)
class TuneSpace:
    """The knobs of one recipe."""

    recipe: str
    knobs: tuple[Knob, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that are searched."""
        return tuple(knob.parameter for knob in self.knobs)

    def grid(self) -> tuple[dict[str, float], ...]:
        """Every combination of the knobs' values; the last knob turns fastest."""
        settings = itertools.product(*(knob.values for knob in self.knobs))
        return tuple(dict(zip(self.parameters, setting, strict=True)) for setting in settings)

    def with_values(self, values: Mapping[str, Sequence[float]]) -> TuneSpace:
        """The same knobs with other values for those that are named.

        Raises ValueError for a parameter that is no knob here, and for values that are none or doubled.
        """
        unknown = [parameter for parameter in values if parameter not in self.parameters]
        if unknown:
            raise ValueError(f'"{unknown[0]}" is not a knob of {self.recipe}; its knobs: {", ".join(self.parameters)}')
        chosen = tuple(
            Knob(knob.parameter, tuple(values[knob.parameter]), GIVEN) if knob.parameter in values else knob
            for knob in self.knobs
        )
        return dataclasses.replace(self, knobs=chosen)
