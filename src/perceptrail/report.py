"""The page: every study's question, claims, figures and numbers, told in the order of the course.

It is made of what lies in `results/`, of benchmarks and of the MLflow store. Nothing is trained.
"""

import json
import os
import platform
import struct
import subprocess
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from omegaconf import DictConfig

from perceptrail.course import COURSE, Section
from perceptrail.data.idx import FILES, md5
from perceptrail.measures import KINDS, measure
from perceptrail.runs import check_output, read_json, shown
from perceptrail.tables import Table, of_metrics

ROOT = Path(__file__).parents[2]
MARKS = {"holds": "✓", "holds with a limit": "◐", "does not hold here": "✗"}
PACKAGES = ("torch", "pytorch-lightning", "numpy", "scikit-learn", "hydra-core", "optuna", "mlflow")
KNOWN_BY = tuple(dict.fromkeys(kind.measures[0] for kind in KINDS.values()))
RUNS_SHOWN = 5  # of each data set
DOTS = 140  # pixels of a picture to an inch; a screen has 96


@dataclass(frozen=True)
class Picture:
    """A picture inside the page, with its size on a screen."""

    data: str
    width: int
    height: int
    name: str
    caption: str


def write(cfg: DictConfig) -> Path:
    """Write the page that `cfg.page` names and return its path."""
    page, results = Path(cfg.page), Path(cfg.results)
    check_output(page, key="page", makes_folders=True)
    found = {path.parent.name for path in results.glob("*/study.json")}
    known = [section.study for section in COURSE]
    later = [Section(name, "", "") for name in sorted(found - set(known))]
    studies = [_study(s, results / s.study) for s in (*COURSE, *later) if s.study in found]
    claims = [claim for study in studies for claim in study["claims"]]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    text = environment.get_template("page.html").render(
        studies=studies,
        missing=[section for section in COURSE if section.study not in found],
        claims=claims,
        tally=Counter(claim["verdict"] for claim in claims),
        marks=MARKS,
        default=_default_run(results / "evaluate"),
        leaderboard=_leaderboard(cfg.tracking.uri),
        benchmarks=[_benchmark(path) for path in sorted(Path(cfg.benchmarks).glob("*.json"))],
        environment=_environment(),
        digests=_digests(Path(cfg.datasets)),
        root=os.path.relpath(ROOT, page.parent),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    absent = sum(study["absent"] for study in studies)
    rest = f"; pictures not here: {absent} (make repro draws them)" if absent else ""
    print(f"{len(studies)} studies, {len(claims)} claims in {shown(page)}{rest}")
    return page


def _study(section: Section, folder: Path) -> dict[str, Any]:
    stored = read_json(folder / "study.json")
    drawn = [f for f in stored["figures"] if (folder / f["file"]).is_file()]
    pictures = [_picture(folder / f["file"], caption=f["caption"]) for f in drawn]
    measurements = folder / "measurements.csv"
    return stored | {
        "section": section,
        "title": section.title or stored["name"].replace("_", " ").capitalize(),
        "quick": stored["config"]["size"] == "quick",
        "pictures": pictures,
        "absent": len(stored["figures"]) - len(pictures),
        "numbers": of_metrics(read_json(folder / "metrics.json")),
        "measurements": shown(measurements) if measurements.is_file() else None,
    }


def _picture(path: Path, *, caption: str, dots: int = DOTS) -> Picture:
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # where every PNG has its size
    name = path.stem.replace("_", " ")
    pixels = 96 / dots
    data = b64encode(content).decode()
    return Picture(data, round(width * pixels), round(height * pixels), name, caption)


def prose(text: str) -> Markup:
    """Paragraphs parted by empty lines, with `code` between backticks."""
    paragraphs = []
    for block in text.split("\n\n"):
        parts = enumerate(escape(block).split("`"))
        inner = "".join(f"<code>{part}</code>" if i % 2 else part for i, part in parts)
        paragraphs.append(f"<p>{inner}</p>")
    return Markup("\n".join(paragraphs))


def _default_run(folder: Path) -> dict[str, Any] | None:
    """The run that train.py makes when nothing is said, after its evaluation."""
    if not (folder / "metrics.json").is_file():
        return None
    drawn = {
        "figures/learning_curves.png": "Loss and accuracy, epoch by epoch.",
        "figures/test/worst_mistakes.png": "The test digits that it got most wrong.",
    }
    pictures = [_picture(folder / f, caption=c) for f, c in drawn.items() if (folder / f).is_file()]
    metrics = read_json(folder / "metrics.json")
    known_by = next(name for name in KNOWN_BY if f"test/{name}" in metrics)
    rows = [
        [f"test {measure(known_by).words}", _value(metrics, f"test/{known_by}")],
        [f"validation {measure(known_by).words}", _value(metrics, f"best/val/{known_by}")],
        ["epochs", f"{metrics['epoch']}"],
        ["training", f"{metrics['time/fit_s']:.1f} s"],
    ]
    return {"pictures": pictures, "numbers": Table(["", "seed 0"], rows)}


def _leaderboard(uri: str | None) -> list[tuple[str, Table]]:
    """The best runs of each data set by what its task is known by, on the validation data.

    The test is not there to choose by.
    """
    if uri is None or (uri.startswith("sqlite:///") and not Path(uri[10:]).is_file()):
        return []
    from perceptrail import tracking

    boards = []
    for name in KNOWN_BY:
        heads = ["run", "network", "optimizer", f"validation {measure(name).words}", "test"]
        ranked = sorted(tracking.best_runs(uri, metric=f"best/val/{name}"), key=_problem)
        for problem, runs in groupby(ranked, _problem):
            rows = [_standing(run, name) for run in list(runs)[:RUNS_SHOWN]]
            boards.append((problem, Table([*heads, "training", "begun"], rows)))
    return sorted(boards, key=lambda board: board[0])


def _problem(run: Mapping[str, Any]) -> str:
    """What a run learned: the data set, the task and, of a table, the columns told."""
    params = run["params"]
    target = params.get("data.target", "").strip("[]").replace("'", "")
    task = params.get("task.name", "classification")  # as all were before there were tasks
    return f"{run['data']}, {task}" + (f" of {target}" if target else "")


def _standing(run: Mapping[str, Any], known_by: str) -> list[str]:
    params, metrics = run["params"], run["metrics"]
    own = params.get("task._target_") or params.get("model._target_")
    optimizer = params.get("optimizer._target_")  # which a LightningModule of one's own makes
    return [
        run["name"],
        _last(own) if own else f"{params['model.hidden']} {params['model.activation']}",
        f"{_last(optimizer)}, {params['optimizer.lr']}" if optimizer else "–",
        _value(metrics, f"best/val/{known_by}"),
        _value(metrics, f"test/{known_by}"),
        f"{metrics['time/fit_s']:,.1f} s" if "time/fit_s" in metrics else "–",
        run["begun"],
    ]


def _last(target: str) -> str:
    return target.rpartition(".")[2]


def _value(metrics: Mapping[str, float], name: str) -> str:
    """A metric as its measure is written."""
    return f"{metrics[name]:{measure(name).form}}" if name in metrics else "–"


def _benchmark(path: Path) -> dict[str, Any]:
    """A file of `benchmarks/results`: its table and its picture."""
    stored = json.loads(path.read_text())
    picture = path.with_suffix(".png")
    heads, *lines = stored["table"]
    return {
        "name": path.stem,
        "table": Table(heads, lines),
        "rounds": stored["rounds"],
        "machine": stored["machine"],
        "picture": _picture(picture, caption="", dots=150) if picture.is_file() else None,
    }


def _environment() -> list[tuple[str, str]]:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return [
        *([("commit", commit)] if commit else []),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"),
        ("Python", platform.python_version()),
        *((name, version(name)) for name in PACKAGES),
    ]


def _digests(folder: Path) -> list[list[str]]:
    """Each known file that is there: name, bytes, MD5, and whether that is the published one."""
    return [
        [f"{name}/{file.name}", f"{len(content):,}", found, "as published" * (found == file.md5)]
        for name, files in FILES.items()
        for file in files
        if (path := folder / name / file.name).is_file()
        for content in [path.read_bytes()]
        for found in [md5(content)]
    ]
