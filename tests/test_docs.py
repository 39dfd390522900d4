"""The documentation is built without a warning, is complete, and loads nothing from elsewhere."""

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from perceptrail.config import RULES
from perceptrail.invocation import CONF
from perceptrail.search.options import PRUNERS, SAMPLERS
from perceptrail.search.settings import Settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs")]
    built = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


class Page(HTMLParser):
    """What a page links to, loads, and has names for."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.names = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.names.add(values.get("id"))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in ("script", "img") and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(values["href"])


@pytest.mark.slow
def test_links_resolve_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 15
    for path, page in pages.items():
        for link in page.links:
            file, _, name = link.partition("#")
            if ":" in file:
                continue
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), (path.name, link)
            if name and target in pages:
                assert name in pages[target].names, (path.name, link)
        for source in page.loaded:
            assert not re.match("(https?:)?//", source), (path.name, source)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()[\"']?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_every_key_is_there_with_what_it_may_be(site):
    text = re.sub("<[^>]+>", "", (site / "generated/configuration.html").read_text())
    shipped = set()
    for file in CONF.rglob("*.yaml"):
        group = file.parent.relative_to(CONF).as_posix()
        shipped |= paths(yaml.safe_load(file.read_text()) or {}, "" if group == "." else group)
    keys = RULES.keys() & shipped
    assert len(keys) > 50
    for key in keys:
        assert key in text, key
    for field in dataclasses.fields(Settings):
        if field.name[0] != "_" and field.name != "defaults":
            assert f"hydra.sweeper.{field.name}" in text, field
    for name in (*SAMPLERS.keys() - {"motpe"}, *PRUNERS):
        assert name in text, name
    page = (ROOT / "docs/generated/configuration.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| .*? \| (.*) \|$", page, re.M)
    assert len(rows) > 250
    assert [key for key, told in rows if not told] == []
    assert "share of the past" not in text
    assert "a number in [0, 1)" in text
    assert "weights, order of the examples, dropout, validation split" in text


def paths(node, prefix):
    found = set()
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        found.add(path)
        if isinstance(value, dict):
            found |= paths(value, path)
    return found
