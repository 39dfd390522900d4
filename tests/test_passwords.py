"""Passwords in addresses."""

import pytest

from perceptrail.passwords import masked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:secret@host:1/db", "postgresql://u:***@host:1/db"),
        (
            "a='postgresql+psycopg://u:se/c:r@et@host/db' b",
            "a='postgresql+psycopg://u:***@host/db' b",
        ),
        ("http://:secret@host and https://u:secret@x", "http://:***@host and https://u:***@x"),
        (
            "postgresql://host/db?user=u&password=secret&x=1",
            "postgresql://host/db?user=u&password=***&x=1",
        ),
        ("{uri: 'postgresql://u:secret@h/d', n: 3}", "{uri: 'postgresql://u:***@h/d', n: 3}"),
    ],
)
def test_a_password_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    ["sqlite:////tmp/mlflow.db", "http://host:5000/a b@c", "postgresql://u@host/db", "u:p@h"],
)
def test_all_else_stays(text: str) -> None:
    assert masked(text) == text
