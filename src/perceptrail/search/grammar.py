"""Reading a search space: Hydra's override grammar, and a little more in YAML.

An entry is a key and what it may be. On the command line and in YAML it is written as any Hydra
sweep, and each end point belongs to the set, whichever sampler draws from it:

    optimizer.lr: tag(log, interval(1e-4, 1e-1))    a real number, uniform in its logarithm
    model.dropout: range(0, 0.5, 0.1)               0, 0.1, ... 0.5
    model: choice(shallow, deep)                    a config group, or values: choice([8], [8, 8])
    trainer.max_epochs: 5                           fixed: the same in every trial

In YAML an entry may also be a mapping:

    model.norm: {values: [null, batch]}                                  a choice as a YAML list
    model.hidden: {each: choice(64, 128), length: range(1, 3)}           lists of 1 to 3 widths
    optimizer.momentum: {values: interval(0, 1), when: {optimizer: sgd}} exists only then
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from perceptrail.errors import UserError, did_you_mean
from perceptrail.search.domains import Choice, Domain, Lists, Number, text
from perceptrail.search.space import Entry, Space


def read_space(
    params: Mapping[str, Any], arguments: Sequence[str] = (), *, loader: ConfigLoader | None = None
) -> Space:
    """The space of `params` (YAML), in which `arguments` (command line) replace keys or add some.

    Raises UserError, naming the key, if it contradicts itself. `loader` is needed for
    `glob(*)`, which stands for the options of a config group.
    """
    parser = OverridesParser.create(config_loader=loader)
    read = [_entry(parser, str(key), spec) for key, spec in params.items()]
    read += [_parsed(parser, argument) for argument in arguments]
    entries = {entry.name: entry for entry in read}
    searched = [entry for entry in entries.values() if entry.domain]
    for entry in searched:
        _check_conditions(entry, entries)
    return Space(entries, order=tuple(_ordered(searched)))


def _entry(parser: OverridesParser, key: str, spec: Any) -> Entry:
    if not isinstance(spec, Mapping):
        value = spec if isinstance(spec, str) else text(spec)
        return _parsed(parser, f"{key}={value}")
    if "type" in spec:
        return Entry(key, _typed(key, spec), source=text(dict(spec)))
    if not ({"values"} <= set(spec) <= {"values", "when"}) and not (
        {"each", "length"} <= set(spec) <= {"each", "length", "when"}
    ):
        raise UserError(
            f"hydra.sweeper.params.{key} has the keys {sorted(spec)}: a mapping is "
            "{values} or {each, length}, and may add {when}; write a fixed mapping as text"
        )
    inner = {name: _inner(parser, key, spec[name]) for name in spec if name != "when"}
    domain = inner["values"] if "values" in inner else Lists(**inner)
    when = {
        str(parent): tuple(allowed) if isinstance(allowed, list) else (allowed,)
        for parent, allowed in (spec.get("when") or {}).items()
    }
    return Entry(key, domain, when=when, source=text(dict(spec)))


def _typed(key: str, spec: Mapping[str, Any]) -> Domain:
    """An entry as hydra-optuna-sweeper 1.1 wrote it: {type, low, high, step, log}, or {choices}."""
    kinds: dict[str, type] = {"int": int, "float": float}
    absent: dict[str, Any] = {"low": None, "high": None, "step": None, "log": False, "choices": ()}
    given = absent | dict(spec)
    if spec["type"] == "categorical":
        return Choice(tuple(given["choices"]))
    to = kinds.get(spec["type"])
    if to is None or None in (given["low"], given["high"]):
        raise UserError(
            f"hydra.sweeper.search_space.{key}={text(dict(spec))}: must have a type of int or "
            "float with low and high, or categorical with choices"
        )
    step = given["step"] or (1 if to is int else None)
    return Number(to(given["low"]), to(given["high"]), step and to(step), bool(given["log"]))


def _parsed(parser: OverridesParser, line: str) -> Entry:
    try:
        override = parser.parse_override(line)
        override.config_loader = parser.config_loader  # which globs ask for the options of a group
        key = override.get_key_element()
        if not override.is_sweep_override():
            return Entry(key, fixed=override.value(), source=line)
        return Entry(key, domain=_domain(parser, override), source=line.partition("=")[2])
    except (HydraException, UserError) as error:
        raise UserError(f"search space: {line}: {str(error).splitlines()[0]}") from error


def _inner(parser: OverridesParser, key: str, spec: Any) -> Domain:
    """The domain of `values:`, `each:` or `length:`: a sweep as text, or options as a list."""
    if isinstance(spec, list):
        return Choice(tuple(spec))
    if isinstance(spec, str):
        domain = _parsed(parser, f"{key}={spec}").domain
        if domain:
            return domain
    return Choice((spec,))


def _domain(parser: OverridesParser, override: Override) -> Domain:
    sweep = override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    if unknown := tags - {"log", "int"}:
        raise UserError(f"there is no tag {min(unknown)!r}, only log and int")
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None and sweep.end is not None
        to = int if "int" in tags else type(sweep.start)
        return Number(to(sweep.start), to(sweep.end), 1 if to is int else None, "log" in tags)
    if isinstance(sweep, RangeSweep):
        assert sweep.start is not None and sweep.stop is not None
        numbers = (sweep.start, sweep.stop, sweep.step)
        to = int if "int" in tags or all(isinstance(n, int) for n in numbers) else float
        start, stop, step = (Decimal(str(n)) for n in numbers)
        if step == 0 or (stop - start) / step < 0:
            raise UserError("it is empty: the step never leads to the end")
        last = start + (stop - start) // step * step
        low, high = sorted((start, last))
        return Number(to(low), to(high), to(abs(step)), "log" in tags)
    if isinstance(sweep, ChoiceSweep):
        sweep.shuffle = False  # a search draws anyway, and a resumed one needs the same options
    lines = (f"x={option}" for option in override.sweep_string_iterator())
    return Choice(tuple(parser.parse_override(line).value() for line in lines))


def _check_conditions(entry: Entry, entries: Mapping[str, Entry]) -> None:
    for key, allowed in entry.when.items():
        if key not in entries:
            hint = did_you_mean(key, entries)
            raise UserError(f"{entry.name} exists only with {key}, which is not in the space{hint}")
        if domain := entries[key].domain:
            for value in allowed:
                try:
                    domain.undraw(key, value)
                except UserError as error:
                    raise UserError(f"{entry.name} can never exist: {error}") from error


def _ordered(searched: Sequence[Entry]) -> Iterator[tuple[Entry, Domain]]:
    waiting = {entry.name: entry for entry in searched}
    while waiting:
        ready = [e for e in waiting.values() if not set(e.when) & set(waiting)]
        if not ready:
            raise UserError(f"the conditions of {', '.join(waiting)} go round in a circle")
        for entry in ready:
            del waiting[entry.name]
            assert entry.domain
            yield entry, entry.domain
