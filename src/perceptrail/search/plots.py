"""The figures of a study: a page to look around in, and pictures; drawn by a process of their own.

The process is a polite one: it starts at most every half minute, and takes only time left over.
"""

import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from perceptrail.search.results import objectives
from perceptrail.search.storage import open_storage

log = logging.getLogger(__name__)

FOLDER, PAGE = "figures", "study.html"
EVERY_S, SHARE = 30.0, 0.05  # the least time between two drawings, and their part of all time


class Artist:
    """The sweeper's side: has the figures drawn anew now and then."""

    def __init__(self, address: str, study: str, folder: Path) -> None:
        self._task = {"address": address, "study": study, "folder": str(folder)}
        self._process: subprocess.Popen[str] | None = None
        self._started = self._due = time.monotonic()

    def refresh(self) -> bool:
        """Start a drawing if one is due; returns whether one has been finished since last asked."""
        drawn = self._process is not None and self._process.poll() is not None
        if drawn:
            self._take()
        if self._process is None and time.monotonic() >= self._due:
            self._start()
        return drawn

    def finish(self) -> None:
        """Draw how it all ended."""
        if self._process is not None:
            self._process.wait()
            self._take()
        self._start()
        self._take()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the sweeper, which then draws once more
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin
        json.dump(self._task, self._process.stdin)  # not an argument: the address may be secret
        self._process.stdin.close()

    def _take(self) -> None:
        assert self._process is not None
        if code := self._process.wait():
            log.warning(f"the figures could not be drawn (exit code {code})")
        took = time.monotonic() - self._started
        self._due = self._started + max(EVERY_S, took / SHARE)
        self._process = None


@dataclass(frozen=True)
class _Done:
    """What there is to draw."""

    study: Study
    complete: Sequence[FrozenTrial]
    common: Sequence[str]  # parameters that every complete trial has, with more than one value
    varied: Sequence[str]  # those that some have

    @property
    def spread(self) -> bool:
        """Whether one trial can be told from another."""
        return len({t.values[0] for t in self.complete}) > 1


Needs = Callable[[_Done], bool]
Names = Callable[[_Done], dict[str, Any]]
# What each plot needs, whether it shows one objective at a time, and its parameters.
PLOTS: dict[str, tuple[Needs, bool, Names]] = {
    "optimization_history": (lambda d: bool(d.complete), True, lambda _: {}),
    "param_importances": (
        lambda d: d.spread and bool(d.common),
        True,
        lambda d: {"params": d.common},
    ),
    "parallel_coordinate": (
        lambda d: d.spread and bool(d.common),
        True,
        lambda d: {"params": d.common},
    ),
    "slice": (lambda d: bool(d.varied), True, lambda d: {"params": d.varied}),
    "intermediate_values": (
        lambda d: any(t.intermediate_values for t in d.study.get_trials(deepcopy=False)),
        False,
        lambda _: {},
    ),
    "pareto_front": (
        lambda d: len(d.study.directions) in (2, 3) and bool(d.complete),
        False,
        lambda d: {"target_names": objectives(d.study)},
    ),
}


def draw(study: Study, folder: Path) -> list[Path]:
    """Draw all plots that the study has trials enough for; returns the files."""
    import matplotlib as mpl
    import optuna.visualization as page
    from optuna.visualization import matplotlib as picture

    mpl.use("agg")
    warnings.simplefilter("ignore", ExperimentalWarning)
    warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    parts: list[str] = []
    for name, plot, given in _plots(study):
        figure = getattr(page, f"plot_{plot}")(study, **given)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts))
        axes = getattr(picture, f"plot_{plot}")(study, **given)
        drawing = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
        save = partial(drawing.savefig, dpi=120, bbox_inches="tight")
        files.append(_replace(folder / f"{name}.png", save))
        mpl.pyplot.close(drawing)
    title = f"<title>{study.study_name}</title>"
    text = f'<!doctype html><meta charset="utf-8">{title}{"".join(parts)}'
    return [_replace(folder / PAGE, lambda path: path.write_text(text)), *files] if parts else []


def _plots(study: Study) -> Iterator[tuple[str, str, dict[str, Any]]]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    names = list(dict.fromkeys(name for t in complete for name in t.params))
    varied = [n for n in names if len({str(t.params[n]) for t in complete if n in t.params}) > 1]
    common = [n for n in varied if all(n in t.params for t in complete)]
    done = _Done(study, complete, common, varied)
    shown = objectives(study)
    for plot, (needs, each, params) in PLOTS.items():
        if not needs(done):
            continue
        if not each or len(shown) == 1:
            yield plot, plot, params(done)
            continue
        for i, (name, direction) in enumerate(zip(shown, study.directions, strict=True)):
            # Importance is importance for low values.
            turned = plot == "param_importances" and direction == StudyDirection.MAXIMIZE
            sign = -1 if turned else 1
            target = {
                "target": lambda t, i=i, sign=sign: sign * t.values[i],
                "target_name": name,
            }
            yield f"{plot}-{name.replace('/', '_')}", plot, params(done) | target


def _replace(path: Path, write: Callable[[Path], Any]) -> Path:
    draft = path.with_name(f"{os.getpid()}-{path.name}")
    write(draft)
    return draft.replace(path)


if __name__ == "__main__":
    os.nice(10)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # such as: too few trials for a line
    wanted = json.load(sys.stdin)
    storage = open_storage(wanted["address"])
    draw(
        optuna.load_study(study_name=wanted["study"], storage=storage),
        Path(wanted["folder"]) / FOLDER,
    )
