"""Spaces as they are written, well and badly."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from perceptrail.errors import UserError
from perceptrail.search.domains import Choice, Domain, Lists, Number, text
from perceptrail.search.grammar import read_space


def domain(spec: object) -> Domain:
    return read_space({"x": spec}).order[0][1]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("choice(a, b)", Choice(("a", "b"))),
        ("a,b", Choice(("a", "b"))),
        ("choice([1, 2], [3])", Choice(([1, 2], [3]))),
        ("choice({a: 1}, {b: 2})", Choice(({"a": 1}, {"b": 2}))),
        ("shuffle(1, 2)", Choice((1, 2))),
        ("interval(0, 1)", Number(0.0, 1.0)),
        ("int(interval(1, 8))", Number(1, 8, 1)),
        ("tag(log, interval(1e-4, 1e-1))", Number(1e-4, 1e-1, log=True)),
        ("tag(log, int(interval(1, 128)))", Number(1, 128, 1, log=True)),
        ("tag(int, log, interval(1, 128))", Number(1, 128, 1, log=True)),
        ("range(1, 10, 3)", Number(1, 10, 3)),
        ("range(1, 9, 3)", Number(1, 7, 3)),
        ("range(10, 1, -4)", Number(2, 10, 4)),
        ("range(3)", Number(0, 3, 1)),
        ("range(0, 0.5, 0.1)", Number(0.0, 0.5, 0.1)),
        ("float(range(1, 3))", Number(1.0, 3.0, 1.0)),
        ({"values": [None, "batch"]}, Choice((None, "batch"))),
        ({"values": "range(1, 3)"}, Number(1, 3, 1)),
        (
            {"each": "choice(8, 16)", "length": "range(1, 2)"},
            Lists(Choice((8, 16)), Number(1, 2, 1)),
        ),
        ({"each": "interval(0, 1)", "length": 2}, Lists(Number(0.0, 1.0), Choice((2,)))),
    ],
)
def test_reads_the_grammar(spec: object, expected: Domain) -> None:
    assert domain(spec) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(
            "relu",
            "1",
            "true",
            "null",
            "a b",
            "a,b",
            "it's",
            "[x]",
            "",
            "choice(1,2)",
            "${x}",
            "a=b",
        ),
        *(1, 1.5, 1e-05, True, None, [1, [2, "3"]], {"a": ["b", 1]}),
    ],
)
def test_text_reads_back(value: object) -> None:
    override = OverridesParser.create().parse_override(f"x={text(value)}")
    assert override.value() == value
    assert type(override.value()) is type(value)


def test_the_command_line_replaces_and_adds() -> None:
    params = {"a": "choice(1, 2)", "b": 5, "c": "range(0, 3)"}
    space = read_space(params, ["a=7", "+d=choice(x, y)", "~e"])
    assert [entry.name for entry, _ in space.order] == ["c", "d"]
    assert space.fixed() == {"a": 7, "b": 5}
    assert space.overrides({"c": 1, "d": "x"}) == ["a=7", "b=5", "c=1", "+d=x", "~e"]


CONDITIONAL = {"values": "range(0, 1)", "when": {"a": 3}}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"x": {"type": "real", "low": 0, "high": 1}}, "search_space.x"),
        ({"x": "interval(1, 0)"}, "x=interval(1, 0)"),
        ({"x": "range(3, 1)"}, "x=range(3, 1)"),
        ({"x": "range(1, 3, 0)"}, "x=range(1, 3, 0)"),
        ({"x": "tag(log, interval(0, 1))"}, "above 0"),
        ({"x": "tag(log, interval(-1, 1))"}, "above 0"),
        ({"x": "tag(log, range(1, 9, 2))"}, "no step"),
        ({"x": "tag(logarithmic, interval(1, 2))"}, "'logarithmic'"),
        ({"x": "choice(1, 1)"}, "different values"),
        ({"x": "choice()"}, "x=choice()"),
        ({"x": "choise(1, 2)"}, "choise"),
        ({"x": "interval(1, 2"}, "x=interval(1, 2"),
        ({"x": {"values": []}}, "different values"),
        ({"x": {"value": "choice(1, 2)"}}, "x has the keys ['value']"),
        ({"x": {"each": "choice(1, 2)"}}, "x has the keys ['each']"),
        ({"x": {"each": "choice(1, 2)", "length": "range(-1, 2)"}}, "from 0, got -1"),
        ({"x": {"each": "choice(1, 2)", "length": "interval(1, 2)"}}, "length"),
        ({"x": CONDITIONAL}, "a, which is not in the space"),
        ({"x": CONDITIONAL, "a": "choice(1, 2)"}, "can never exist"),
        (
            {
                "a": {"values": "choice(1, 3)", "when": {"x": 1}},
                "x": {"values": "choice(1, 2)", "when": {"a": 3}},
            },
            "circle",
        ),
    ],
)
def test_refuses_a_malformed_space(params: dict[str, object], named: str) -> None:
    with pytest.raises(UserError) as raised:
        read_space(params)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)
