"""Where the values of a hyperparameter lie on an axis."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from tune.progress import number
from tune.report.importance import spans_decades
from tune.space.parameters import Value

FEW_VALUES = 12
"""A whole number with at most so many values is shown value by value."""


@dataclass(frozen=True)
class Scale:
    """Where the values of a parameter lie on an axis from 0 to 1."""

    values: tuple[Value, ...]
    """Every value, in order, if it is shown value by value; else the lowest and the highest."""
    by_value: bool
    logarithmic: bool

    @classmethod
    def of(cls, values: Iterable[Value | None], logarithmic: bool | None = None) -> "Scale":
        """The scale that shows some values; None is no value, and ``logarithmic`` is chosen where it is not given."""
        known = {value for value in values if value is not None}
        numbers = [value for value in known if isinstance(value, (int, float)) and not isinstance(value, bool)]
        fractions = any(isinstance(value, float) for value in numbers)
        if len(numbers) < len(known) or len(known) < 2 or (not fractions and len(known) <= FEW_VALUES):
            return cls(tuple(sorted(known, key=lambda value: (str(type(value)), value))), True, False)
        if logarithmic is None:
            logarithmic = spans_decades(numbers)
        return cls((min(numbers), max(numbers)), False, logarithmic)

    def place(self, value: Value | None) -> float:
        """Of a value; NaN for none."""
        if value is None:
            return math.nan
        if self.by_value:
            return 0.5 if len(self.values) == 1 else self.values.index(value) / (len(self.values) - 1)
        low, high, at = (math.log(float(each)) if self.logarithmic else float(each) for each in (*self.values, value))
        return (at - low) / (high - low)

    def jitter(self, number: int) -> float:
        """A small shift that keeps trials of the same value apart."""
        return 0.12 / len(self.values) * (number * 0.618 % 1 - 0.5) if self.by_value and len(self.values) else 0.0

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Text and place."""
        if self.by_value:
            return [(number(value), self.place(value)) for value in self.values]
        low, high = (float(value) for value in self.values)
        if self.logarithmic:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = (1,) if len(powers) > 4 else (1, 3)
            inside = [step * 10.0**power for power in powers for step in steps]
        else:
            inside = [float(value) for value in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)]
        return [(f"{value:g}", self.place(value)) for value in inside if low <= value <= high]
