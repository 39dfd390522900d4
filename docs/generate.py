"""The pages that are made of the sources: every key, the interface, the picture of the floors."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from perceptrail.config import OF_MLP, RULES, Rule
from perceptrail.invocation import CONF
from perceptrail.search import settings
from perceptrail.search.options import PRUNERS, REPLACED, SAMPLERS

ROOT = Path(__file__).parents[1]
GROUPS = {
    "": "The commands",
    "data": "Data",
    "task": "Tasks",
    "model": "Models",
    "optimizer": "Optimizers",
    "schedule": "Schedules of the learning rate",
    "dropout": "Schedules of dropout",
    "callbacks": "Callbacks",
    "trainer": "Trainer",
    "tracking": "Tracking",
    "logger": "Loggers",
    "experiment": "Presets",
    "hparams_search": "Searches",
}
INTERFACE = (
    *("interactive", "network", "model", "convolutional", "tasks", "losses", "measures"),
    *("activations", "schedules", "classifier", "callbacks", "trainer", "prediction", "runs"),
    *("data.dataset", "data.module", "data.stream", "data.sets", "data.synthetic", "data.table"),
    *("data.arrays", "data.images", "data.augment", "scratch.perceptron", "scratch.network"),
    *("scratch.losses", "scratch.optimizers", "search.trial", "search.settings", "figures"),
)
HYDRAS = {  # keys that mean the same wherever they stand
    "_target_": "the class or function that is called",
    "_partial_": "true: it is called later, with what is then known",
}
_KEY = re.compile(r"^( *)([\w./-]+):(?: +([^#]*?))?(?: *# ?(.*))?$")


class Key(NamedTuple):
    """A key of a YAML file: its path, its default, and what its comment says."""

    path: str
    default: str
    comment: str


def write(folder: Path) -> None:
    """Write the pages, those alone that have changed, each in one step: two builds may run."""
    pages = {"configuration.md": configuration(), "api.md": api(), "floors.svg": floors()}
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        page = folder / name
        if not page.exists() or page.read_text() != text:
            draft = page.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text(text)
            draft.replace(page)


def configuration() -> str:
    """A section for each group, with a table for each of its files."""
    parts = [
        "# Every key",
        "Made of the YAML files under `src/perceptrail/conf` and of the rules that values are "
        "checked by. An option of a group is chosen by `group=option`.",
    ]
    files = {g: sorted((CONF / g).glob("*.yaml")) for g in GROUPS}
    pages = {file: keys(file.read_text(), prefix=g) for g in GROUPS for file in files[g]}
    # A key is described once, and meant so in every option that has it.
    described: dict[str, str] = {}
    for _, found in pages.values():
        for key in found:
            if key.comment:
                described.setdefault(key.path, key.comment)
    for group, title in GROUPS.items():
        parts.append(f"## {title}")
        for file in files[group]:
            name = f"{group}={file.stem}" if group else file.stem
            parts.append(f"### {name}")
            about, found = pages[file]
            own = any(key.path == "model._target_" for key in found)
            parts += [about] if about else []
            rows = [(k.path, k.default, said(k, described, own=own)) for k in found]
            parts += [_table(rows)] if rows else []
        if group == "trainer":
            parts.append("Every other argument of Lightning's Trainer: [the table](../trainer.md).")
    return "\n\n".join([*parts, *_sweeper()]) + "\n"


def _table(rows: list[tuple[str, str, str]]) -> str:
    cells = [f"| `{path}` | {_code(value)} | {_cell(text)} |" for path, value, text in rows]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *cells])


def _sweeper() -> list[str]:
    """What a search is told, by the comments of its settings; its samplers and pruners."""
    fields = Path(settings.__file__).read_text().partition("class Settings:")[2]
    fields = fields.partition("    def ")[0]
    chosen = {kind: name for entry in settings.Settings().defaults for kind, name in entry.items()}
    rows: list[tuple[str, str, str]] = []
    comment = ""
    for line in fields.splitlines():
        if line.startswith("    # "):
            comment += " " + line.removeprefix("    # ")
        elif (match := re.match(r"    ([a-z]\w*): .*? = (.*)", line)) and match[1] != "defaults":
            value = re.sub(r"field\(default_factory=(list|dict|lambda: (.*))\)", r"\2", match[2])
            empty = {"list": "[]", "dict": "{}"}.get(match[2].partition("=")[2].rstrip(")"), value)
            names = {"None": "null", "MISSING": chosen.get(match[1], "")}
            default = names.get(empty, empty.strip('"'))
            rows.append((f"hydra.sweeper.{match[1]}", default, comment.strip()))
            comment = ""
    parts = [
        "## What a search is told",
        "With `hydra/sweeper=optuna`, as every `hparams_search` has it.",
        _table(rows),
    ]
    for kind, options in {"sampler": SAMPLERS, "pruner": PRUNERS}.items():
        lines = [f"| `hydra/sweeper/{kind}` | arguments |", "|---|---|"]
        for name, node in options.items():
            if node["_target_"] in REPLACED:
                continue
            given = ", ".join(f"`{key}`" for key in node if key != "_target_")
            lines.append(f"| `{name}` | {given} |")
        parts.append("\n".join(lines))
    return parts


def keys(text: str, *, prefix: str) -> tuple[str, list[Key]]:
    """What a YAML file says of itself, and its keys with their comments."""
    lines = text.splitlines()
    head = [line.lstrip("# ") for line in lines if line.startswith("#")]
    about = " ".join(line for line in head if not line.startswith("@package"))
    prefix = "" if "# @package _global_" in lines else prefix
    found: list[Key] = []
    open_keys: list[tuple[int, str]] = []
    for line in _with_whole_comments(lines):
        match = _KEY.match(line)
        if match is None:
            continue
        indent, name, value, comment = match.groups()
        while open_keys and open_keys[-1][0] >= len(indent):
            open_keys.pop()
        path = ".".join(filter(None, [prefix, *(key for _, key in open_keys), name]))
        open_keys.append((len(indent), name))
        if name != "defaults" and (value or comment) and not path.startswith("hydra."):
            found.append(Key(path, (value or "").strip(), comment or ""))
    return about, found


def _with_whole_comments(lines: list[str]) -> Iterator[str]:
    """Lines, with the further lines of a comment brought to its first."""
    kept = ""
    for line in lines:
        if line.lstrip().startswith("#") and kept:
            kept += " " + line.lstrip("# ") if "#" in kept else f"  # {line.lstrip('# ')}"
        elif not line.startswith("#"):
            yield kept
            kept = line
    yield kept


def allowed(path: str, *, own: bool) -> str:
    """What a value must be, by its rule; of a module of one's `own` it may mean something else."""
    rule = RULES.get(path)
    if rule is None or (own and path in OF_MLP):
        return ""
    return rule.allowed if isinstance(rule, Rule) else rule().allowed


def said(key: Key, described: Mapping[str, str], *, own: bool) -> str:
    """What a key is, by its comment or that of the same key elsewhere, and what it must be."""
    last = key.path.rpartition(".")[2]
    comment = key.comment or HYDRAS.get(last) or described.get(key.path, "")
    rule = allowed(key.path, own=own)
    return f"{comment}{' — ' if comment else ''}must be {rule}" if rule else comment


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def _cell(text: str) -> str:
    """A table's cell; what Markdown or HTML would take for its own is escaped."""
    return escape(re.sub(r"([|*_\[\]$])", r"\\\1", text), quote=False)


def api() -> str:
    """A section for each module that is of use to others."""
    sections = [
        f"## perceptrail.{name}\n\n```{{eval-rst}}\n.. automodule:: perceptrail.{name}\n```"
        for name in INTERFACE
    ]
    return "\n\n".join(["# The interface", *sections]) + "\n"


def floors() -> str:
    """A picture of the layers that import-linter checks: what is above imports what is below."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers: list[str] = contract["contracts"][0]["layers"]
    width, height, gap = 900, 34, 6
    shapes = []
    for row, layer in enumerate(layers):
        y = row * (height + gap) + gap
        share = round(255 - 75 * row / len(layers))
        shapes.append(
            f'<rect x="6" y="{y}" width="{width - 12}" height="{height}" rx="6" '
            f'fill="rgb({share - 40},{share - 12},{share})" stroke="#456"/>'
            f'<text x="{width / 2}" y="{y + 22}" text-anchor="middle">'
            f"{escape(layer.replace(' | ', ' · '))}</text>"
        )
    whole = len(layers) * (height + gap) + gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" '
        f'font-family="monospace" font-size="12" fill="#123">{"".join(shapes)}</svg>\n'
    )
