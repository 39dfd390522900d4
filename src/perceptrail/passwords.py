"""Passwords in the addresses of databases and servers: needed to connect, for nobody to read."""

import re

_PASSWORD = re.compile(r"(?<=://)([^\s:/@]*):\S*@|([?&]password=)[^&\s'\"]+")


def masked(text: str) -> str:
    """`text` with three asterisks for each password in an address."""
    return _PASSWORD.sub(lambda m: f"{m[2]}***" if m[2] else f"{m[1]}:***@", text)
