"""The figures of a study: a page to look around in, and pictures; drawn by a process of their own.

The process is a polite one: it starts after some seconds, then at most every half minute, and takes
only time left over.
"""

import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import TrialState

from perceptrail.search.results import objectives
from perceptrail.search.storage import open_storage

log = logging.getLogger(__name__)

FOLDER, PAGE = "figures", "study.html"
FIRST_S = 10.0  # a search that is over by then is drawn once
EVERY_S, SHARE = 30.0, 0.05  # the least time between two drawings, and their part of all time
UNUSED = {
    "_fanova": "FanovaImportanceEvaluator",
    "_mean_decrease_impurity": "MeanDecreaseImpurityImportanceEvaluator",
}


class Artist:
    """The sweeper's side: has the figures drawn anew now and then.

    A process for the next drawing waits with all imported, which is most of what a drawing takes.
    """

    def __init__(self, address: str, study: Study, folder: Path) -> None:
        self._task = {"address": address, "study": study.study_name, "folder": str(folder)}
        self._process: subprocess.Popen[str] | None = None
        self._begun: float | None = None  # when it was told to draw
        self._due = time.monotonic() + FIRST_S

    def refresh(self) -> bool:
        """Start a drawing if one is due; returns whether one has been finished since last asked."""
        drawn = self._begun is not None and self._ready().poll() is not None
        if drawn:
            self._take()
        process = self._ready()
        if self._begun is None and time.monotonic() >= self._due:
            self._tell(process)
        return drawn

    def finish(self) -> None:
        """Draw how it all ended."""
        if self._begun is not None:
            self._take()
        self._tell(self._ready())
        self._take()

    def _ready(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a Ctrl-C is for the sweeper, which then draws once more
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            )
        return self._process

    def _tell(self, process: subprocess.Popen[str]) -> None:
        self._begun = time.monotonic()
        assert process.stdin
        with suppress(BrokenPipeError), process.stdin as line:
            json.dump(self._task, line)  # not an argument: the address may be secret

    def _take(self) -> None:
        assert self._begun is not None
        if code := self._ready().wait():
            log.warning(f"the figures could not be drawn (exit code {code})")
        took = time.monotonic() - self._begun
        self._due = self._begun + max(EVERY_S, took / SHARE)
        self._process = self._begun = None


def draw(study: Study, folder: Path) -> None:
    """Draw all plots that the study has trials enough for."""
    import matplotlib as mpl
    import optuna.visualization as page
    from optuna.visualization import matplotlib as picture

    mpl.use("agg")
    warnings.simplefilter("ignore", ExperimentalWarning)
    warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[str] = []
    for name, plot, given in _plots(study):
        figure = getattr(page, f"plot_{plot}")(study, **given)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts))
        axes = getattr(picture, f"plot_{plot}")(study, **given)
        drawing = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
        save = partial(drawing.savefig, dpi=120, bbox_inches="tight")
        _replace(folder / f"{name}.png", save)
        mpl.pyplot.close(drawing)
    if parts:
        title = f"<title>{study.study_name}</title>"
        text = f'<!doctype html><meta charset="utf-8">{title}{"".join(parts)}'
        _replace(folder / PAGE, lambda path: path.write_text(text))


def _plots(study: Study) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The plots that there are trials enough for: file, function of Optuna's, its arguments."""
    trials = study.get_trials(deepcopy=False)
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    names = dict.fromkeys(name for t in done for name in t.params)
    varied = [n for n in names if len({str(t.params[n]) for t in done if n in t.params}) > 1]
    common = [n for n in varied if all(n in t.params for t in done)]
    told_apart = bool(common) and len({t.values[0] for t in done}) > 1
    shown = objectives(study)
    # What each plot needs, whether it shows one objective at a time, and its arguments.
    table: dict[str, tuple[bool, bool, dict[str, Any]]] = {
        "optimization_history": (bool(done), True, {}),
        "param_importances": (told_apart, True, {"params": common}),
        "parallel_coordinate": (told_apart, True, {"params": common}),
        "slice": (bool(varied), True, {"params": varied}),
        "intermediate_values": (any(t.intermediate_values for t in trials), False, {}),
        "pareto_front": (bool(done) and len(shown) in (2, 3), False, {"target_names": shown}),
    }
    for plot, (possible, each, given) in table.items():
        if possible and not (each and len(shown) > 1):
            yield plot, plot, given
        elif possible:
            for i, (name, direction) in enumerate(zip(shown, study.directions, strict=True)):
                # Importance is importance for low values.
                turned = plot == "param_importances" and direction == StudyDirection.MAXIMIZE
                sign = -1 if turned else 1
                target = {
                    "target": lambda t, i=i, sign=sign: sign * t.values[i],
                    "target_name": name,
                }
                yield f"{plot}-{name.replace('/', '_')}", plot, given | target


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    draft = path.with_name(f"{os.getpid()}-{path.name}")
    write(draft)
    draft.replace(path)


def _without_forests() -> None:
    """Spare the import of scikit-learn, half the time of a drawing.

    Optuna imports it with two evaluators of importances that are not its default.
    """
    for name, evaluator in UNUSED.items():
        module = ModuleType(f"optuna.importance.{name}")
        setattr(module, evaluator, None)
        sys.modules[module.__name__] = module


if __name__ == "__main__":
    os.nice(10)
    _without_forests()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # such as: too few trials for a line
    warnings.filterwarnings("ignore", "Tight layout")  # of long labels, for which there is room
    with TemporaryDirectory() as apart:  # for what a drawing imports
        example = optuna.create_study()
        example.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        draw(example, Path(apart))
    if given := sys.stdin.read():  # else the search is gone
        task = json.loads(given)
        drawn = optuna.load_study(study_name=task["study"], storage=open_storage(task["address"]))
        draw(drawn, Path(task["folder"]) / FOLDER)
