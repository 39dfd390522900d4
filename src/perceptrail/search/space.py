"""The search space: its entries, what is drawn from them and which overrides that gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from perceptrail.search.domains import Choice, Domain, Suggest, Values, text


@dataclass(frozen=True)
class Entry:
    """One key of the space: a domain to search, or the one value it always has."""

    key: str  # as typed: optimizer.lr, +new.key, ~deleted
    domain: Domain | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    fixed: Any = None
    source: str = ""

    @property
    def name(self) -> str:
        """The key without the signs that add or delete it."""
        return self.key.lstrip("+~")

    def exists(self, values: Values) -> bool:
        """Whether the conditions of this entry hold."""
        return all(key in values and values[key] in of for key, of in self.when.items())

    def override(self, value: Any) -> str:
        """The override of a trial with this value."""
        return f"{self.key}={text(value)}" if self.domain else self.source


@dataclass(frozen=True)
class Space:
    """All entries by name; `order` lists the searched ones so that conditions come first."""

    entries: Mapping[str, Entry]
    order: tuple[tuple[Entry, Domain], ...]

    def fixed(self) -> Values:
        """The values that are the same in every trial."""
        deleted = [e.name for e in self.entries.values() if e.key.startswith("~")]
        found = {name: e.fixed for name, e in self.entries.items() if not e.domain}
        return {name: value for name, value in found.items() if name not in deleted}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Everything that Optuna may be asked to draw, by name."""
        return {k: d for e, domain in self.order for k, d in domain.distributions(e.name).items()}

    def draw(self, suggest: Suggest) -> Values:
        """The value of every entry that exists, drawn through `suggest(name, distribution)`."""
        values = self.fixed()
        for entry, domain in self.order:
            if entry.exists(values):
                values[entry.name] = domain.draw(entry.name, suggest)
        return values

    def undraw(self, values: Values) -> Values:
        """What Optuna would have drawn to give `values`; a name left out is still to be drawn."""
        known, drawn = self.fixed() | values, Values()
        for entry, domain in self.order:
            if entry.name in known and entry.exists(known):
                drawn |= domain.undraw(entry.name, known[entry.name])
        return drawn

    def redraw(self, drawn: Values) -> Values:
        """The values that come of what Optuna has drawn: the inverse of `undraw`."""
        return self.draw(lambda name, _: drawn[name])

    def points(self) -> list[Values]:
        """Every point of a finite space, as Optuna would have drawn it; the first key slowest."""
        found = [self.fixed()]
        for entry, domain in self.order:
            options = [{entry.name: value} for value in domain.values(entry.name)]
            found = [
                values | own
                for values in found
                for own in (options if entry.exists(values) else [{}])
            ]
        return [self.undraw(values) for values in found]

    def overrides(self, values: Values) -> list[str]:
        """The overrides of one trial, in the order in which the space was written."""
        return [
            entry.override(values.get(name))
            for name, entry in self.entries.items()
            if entry.domain is None or name in values
        ]

    def witnesses(self) -> Iterator[tuple[str, Values]]:
        """A few points that together show every key, and every option of every choice."""
        first = {entry.name: domain.draw(entry.name, _lowest) for entry, domain in self.order}
        for entry, domain in self.order:
            options = domain.options if isinstance(domain, Choice) else (first[entry.name],)
            for option in options:
                wanted = first | self._conditions(entry) | {entry.name: option}
                values = self.fixed()
                for other, _ in self.order:
                    if other.exists(values):
                        values[other.name] = wanted[other.name]
                if entry.name in values:
                    yield entry.name, values

    def _conditions(self, entry: Entry) -> Values:
        parents = [self._conditions(self.entries[key]) for key in entry.when]
        own = {key: allowed[0] for key, allowed in entry.when.items()}
        return {k: v for conditions in [*parents, own] for k, v in conditions.items()}


def _lowest(name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low
