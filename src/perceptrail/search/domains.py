"""What a key of a search space may be: a choice, a number, a list of either."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from perceptrail.errors import UserError

Suggest = Callable[[str, BaseDistribution], Any]
Values = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One of some values. Lists and mappings go by their text: Optuna stores only scalars."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        repeated = [a for a, b in itertools.combinations(self.options, 2) if a == b]
        if repeated or not self.options:
            raise UserError(f"a choice needs different values, got {text(list(self.options))}")

    @property
    def labels(self) -> list[Any]:
        """The options as Optuna stores them."""
        return [text(o) if isinstance(o, list | dict) else o for o in self.options]

    def distributions(self, name: str) -> dict[str, BaseDistribution]:
        """What Optuna draws, by name."""
        return {name: CategoricalDistribution(self.labels)}

    def draw(self, name: str, suggest: Suggest) -> Any:
        """Draw a value through `suggest(name, distribution)`."""
        label = suggest(name, CategoricalDistribution(self.labels))
        return self.options[self.labels.index(label)]

    def undraw(self, name: str, value: Any) -> Values:
        """What Optuna would have drawn to give `value`; UserError if it is not in the set."""
        if value not in self.options:
            raise UserError(f"{name}={text(value)} is not one of {text(list(self.options))}")
        return {name: self.labels[self.options.index(value)]}

    def values(self, name: str) -> Iterator[Any]:
        """All values; UserError if there is no end of them."""
        return iter(self.options)


@dataclass(frozen=True)
class Number:
    """An interval, or the multiples of a step in it; integers where the end points are."""

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UserError(f"{self.low} to {self.high} is empty: the lower end comes first")
        if self.log and self.low <= 0:
            raise UserError(f"a logarithmic range starts above 0, got {self.low}")
        if self.log and self.step not in (None, 1):
            raise UserError(f"a logarithmic range has no step, got {self.step}")

    def distributions(self, name: str) -> dict[str, BaseDistribution]:
        """What Optuna draws, by name."""
        if isinstance(self.low, int):
            step = int(self.step or 1)
            return {name: IntDistribution(self.low, int(self.high), log=self.log, step=step)}
        return {name: FloatDistribution(self.low, self.high, log=self.log, step=self.step)}

    def draw(self, name: str, suggest: Suggest) -> Any:
        """Draw a value through `suggest(name, distribution)`."""
        drawn = suggest(name, self.distributions(name)[name])
        return drawn if self.step is None else self._nth(round((drawn - self.low) / self.step))

    def undraw(self, name: str, value: Any) -> Values:
        """What Optuna would have drawn to give `value`; UserError if it is not in the set."""
        number = isinstance(value, int if isinstance(self.low, int) else int | float)
        inside = number and not isinstance(value, bool) and self.low <= value <= self.high
        if inside and self.step is not None:
            nearest = self._nth(round((value - self.low) / self.step))
            inside = abs(nearest - value) <= 1e-9 * abs(self.step)
        if not inside:
            by = "" if self.step is None else f" in steps of {self.step}"
            raise UserError(f"{name}={text(value)} is not in {self.low} to {self.high}{by}")
        return {name: value}

    def values(self, name: str) -> Iterator[Any]:
        """All values; UserError if there is no end of them."""
        if self.step is None:
            raise UserError(f"{name} is an interval, which has no end of values: use range(...)")
        return (self._nth(i) for i in range(round((self.high - self.low) / self.step) + 1))

    def _nth(self, i: int) -> Any:
        # In decimal, because 0.1 + 2 * 0.1 would print as 0.30000000000000004.
        return type(self.low)(Decimal(str(self.low)) + i * Decimal(str(self.step)))


@dataclass(frozen=True)
class Lists:
    """Lists whose length is drawn first, then each element."""

    each: "Domain"
    length: "Domain"

    def __post_init__(self) -> None:
        wrong = [n for n in self.length.values("length") if type(n) is not int or n < 0]
        if wrong:
            raise UserError(f"the length of a list is a whole number from 0, got {wrong[0]}")

    def distributions(self, name: str) -> dict[str, BaseDistribution]:
        """What Optuna draws, by name."""
        longest = max(self.length.values(name))
        elements = [self.each.distributions(f"{name}[{i}]") for i in range(longest)]
        return self.length.distributions(f"{name}.length") | {
            key: distribution for each in elements for key, distribution in each.items()
        }

    def draw(self, name: str, suggest: Suggest) -> Any:
        """Draw a value through `suggest(name, distribution)`."""
        length = self.length.draw(f"{name}.length", suggest)
        return [self.each.draw(f"{name}[{i}]", suggest) for i in range(length)]

    def undraw(self, name: str, value: Any) -> Values:
        """What Optuna would have drawn to give `value`; UserError if it is not in the set."""
        if not isinstance(value, list):
            raise UserError(f"{name}={text(value)} is not a list")
        drawn = self.length.undraw(f"{name}.length", len(value))
        for i, element in enumerate(value):
            drawn |= self.each.undraw(f"{name}[{i}]", element)
        return drawn

    def values(self, name: str) -> Iterator[Any]:
        """All values; UserError if there is no end of them."""
        for length in self.length.values(name):
            yield from map(list, itertools.product(list(self.each.values(name)), repeat=length))


# A set of values: drawing from it, the way back, and all of it where it is finite.
Domain = Choice | Number | Lists


def text(value: Any) -> str:
    """`value` as the override grammar writes it, so that parsing it gives `value` back."""

    def quoted(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: quoted(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [quoted(inner) for inner in item]
        if isinstance(item, str) and not _reads_back(item):
            return QuotedString(text=item, quote=Quote.single)
        return item

    return Override._get_value_element_as_str(quoted(value))


@cache
def _reads_back(item: str) -> bool:
    try:
        override = OverridesParser.create().parse_override(f"x={item}")
    except HydraException:
        return False
    return not override.is_sweep_override() and override.value() == item
