"""Errors that a user can cause, said in one message that tells what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user can put right; the message names key, value and what is allowed."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The end of a sentence that offers the allowed name nearest to `name`, or nothing."""
    nearest = get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
