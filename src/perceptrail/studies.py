"""Studies: a question of the course, the runs that answer it, and what the page shows of them.

A study is a file in `experiments/` with a function that takes a `Study`, and its sizes and seeds in
`experiments/conf/`. It leaves a folder `results/NAME`: `study.json` (question, claims and verdicts,
figures), `metrics.json`, `measurements.csv`, pictures; and one MLflow run.

This module imports nothing that takes long, so that a study can look at its arguments first.
"""

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final
from uuid import uuid4

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from perceptrail import recorder, runs
from perceptrail.build import dataset
from perceptrail.command import errors_for_people
from perceptrail.errors import UserError, did_you_mean
from perceptrail.invocation import CONF, command_line
from perceptrail.recorder import RunLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from perceptrail.data.dataset import Dataset
    from perceptrail.model import MLP
    from perceptrail.tasks import Task

ROOT = Path(__file__).parents[2]
SIZES = ROOT / "experiments" / "conf"
DPI = 140
UNREPEATABLE = ("time/", "train/samples_per_second")  # differ between two runs of the same thing

Verdict = Literal["holds", "holds with a limit", "does not hold here"]


@final
@dataclass(frozen=True)
class Run:
    """One training of a study: which variant and seed, and what it left."""

    variant: Hashable
    seed: int
    folder: Path
    error: str = ""  # why it has no metrics: its loss became NaN, say

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What its metrics.json says; NaN for whatever a failed run does not have."""
        return {} if self.error else runs.read_json(self.folder / runs.METRICS)

    def __getitem__(self, metric: str) -> float:
        return float(self.metrics.get(metric, math.nan))

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """Its metrics epoch by epoch."""
        if self.error:
            return []
        with (self.folder / "history.csv").open() as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    def load(self) -> "tuple[MLP, Dataset]":
        """Its best network, and the data set that it was trained on."""
        from perceptrail.model import MLP  # imports PyTorch

        stored = OmegaConf.load(self.folder / ".hydra" / "config.yaml")
        assert isinstance(stored, DictConfig)
        return MLP.load(self.folder / runs.MODEL)[0], dataset(stored)

    @property
    def task(self) -> "Task":
        """What it learned."""
        from perceptrail import tasks  # imports PyTorch

        return tasks.read(runs.read_json(self.folder / runs.MODEL / runs.ARCHITECTURE))


@final
class Study:
    """One run of a study: its configuration `cfg`, and the folder that it replaces when it closes.

    Until then the folder holds what an earlier run left, whatever becomes of this one.
    """

    def __init__(self, name: str, cfg: DictConfig, *, page: str, code: Path) -> None:
        self.cfg, self.name = cfg, name
        self.folder = Path(cfg.results) / name
        self._new, self._old = (self.folder.with_name(f".{name}-{age}") for age in ("new", "old"))
        self.runs = self._new / "runs"
        if self._old.exists() and not self.folder.exists():  # killed in the midst of `_replace`
            self._old.rename(self.folder)
        shutil.rmtree(self._old, ignore_errors=True)
        shutil.rmtree(self._new, ignore_errors=True)
        self.runs.mkdir(parents=True)
        question, _, text = page.strip().partition("\n")
        sizes = {key: value for key, value in cfg.items() if key not in ("results", "tracking")}
        self._page: dict[str, Any] = {
            "name": name,
            "question": question,
            "text": text.strip(),
            "code": code.relative_to(ROOT).as_posix(),
            "command": " ".join(["python", f"experiments/{name}.py", *sys.argv[1:]]),
            "config": OmegaConf.to_container(OmegaConf.create(sizes)),
            "claims": [],
            "figures": [],
        }
        self._rows: list[dict[str, Any]] = []
        self._metrics: dict[str, float] = {}

    def train(
        self,
        part: str,
        *common: str,
        variants: Mapping[Any, Sequence[str]],
        seeds: Iterable[int] | None = None,
        may_diverge: bool = False,
    ) -> list[Run]:
        """Train every variant with every seed, as `train.py -m` would, and note their metrics.

        `common` and `variants` are overrides of train.yaml; `part` names this group of runs in the
        measurements. Raises `UserError` when a run fails, unless it may diverge.
        """
        from perceptrail.callbacks import DivergenceError  # imports PyTorch

        seeds = range(self.cfg.seeds) if seeds is None else seeds
        quiet = ("tracking=none", "figures=false", "callbacks.progress=null")
        plan = [(variant, seed) for variant in variants for seed in seeds]
        jobs = [[*quiet, *common, *variants[variant], f"seed={seed}"] for variant, seed in plan]
        print(f"{self.name}: {part}, {len(jobs)} runs", flush=True)
        folder = self.runs / part
        with (self.runs / "log.txt").open("a") as file, redirect_stdout(file):
            returned = launch(
                jobs, folder=folder, launcher=self.cfg.launcher, processes=self.cfg.processes
            )
        done = []
        for number, ((variant, seed), job) in enumerate(zip(plan, returned, strict=True)):
            error = job._return_value if job.status == JobStatus.FAILED else None
            if error and not (may_diverge and isinstance(error, DivergenceError)):
                raise UserError(f"{part}, {variant}, seed {seed}: {error}") from error
            run = Run(variant, seed, folder / str(number), str(error) if error else "")
            measured = {k: v for k, v in run.metrics.items() if isinstance(v, int | float)}
            self.note(part, variant=variant, seed=seed, **measured)
            done.append(run)
        return done

    def note(self, part: str, **measured: Any) -> None:
        """Add a row to the measurements; times, which no run repeats, are left out."""
        kept = {k: v for k, v in measured.items() if not k.startswith(UNREPEATABLE)}
        self._rows.append({"part": part, **kept})

    def metric(self, name: str, values: float | Sequence[float]) -> float:
        """Put a number, or mean and spread of several, into metrics.json; return the mean."""
        if isinstance(values, int | float):
            self._metrics[name] = float(values)
            return float(values)
        from perceptrail.charts import mean_sd  # imports matplotlib

        mean, sd = mean_sd(values)
        self._metrics |= {name: mean, f"{name} sd": sd}
        return mean

    def figure(self, name: str, figure: "Figure", caption: str) -> None:
        """Keep a figure."""
        file = f"figures/{name}.png"
        (self._new / file).parent.mkdir(exist_ok=True)
        figure.savefig(self._new / file, dpi=DPI, metadata={"Software": None})
        self._page["figures"].append({"file": file, "caption": caption})

    def claim(self, text: str, verdict: Verdict, evidence: str) -> None:
        """Say of a claim whether it holds here, and by which numbers."""
        self._page["claims"].append({"claim": text, "verdict": verdict, "evidence": evidence})
        print(f"  {text}\n    {verdict}: {evidence}", flush=True)

    def close(self) -> list[Path]:
        """Write what was gathered, in place of earlier results, and return the files.

        The runs' own folders are removed.
        """
        if self._rows:
            names = list(dict.fromkeys(name for row in self._rows for name in row))
            with (self._new / "measurements.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, names)
                table.writeheader()
                table.writerows(self._rows)
        numbers = {k: v if math.isfinite(v) else None for k, v in self._metrics.items()}
        (self._new / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
        (self._new / "study.json").write_text(json.dumps(self._page, indent=2) + "\n")
        shutil.rmtree(self.runs)
        self._replace()
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def _replace(self) -> None:
        if self.folder.exists():
            self.folder.rename(self._old)
        self._new.rename(self.folder)
        shutil.rmtree(self._old, ignore_errors=True)


def of(done: Iterable[Run], metric: str) -> dict[Any, list[float]]:
    """A metric of all runs by variant, a value for each seed."""
    values: dict[Any, list[float]] = {}
    for run in done:
        values.setdefault(run.variant, []).append(run[metric])
    return values


def verdict(holds: bool, *, partly: bool = False) -> Verdict:
    """The words for a claim that holds, holds partly, or neither."""
    return "holds" if holds else "holds with a limit" if partly else "does not hold here"


def percent(values: Sequence[float]) -> str:
    """Mean ± standard deviation of shares, in percent."""
    from perceptrail.charts import mean_sd  # imports matplotlib

    mean, sd = mean_sd(values)
    return f"{mean:.1%} ± {sd:.1%}" if len(values) > 1 else f"{mean:.1%}"


def check(file: str, page: str) -> DictConfig:
    """The configuration that the arguments of the study in `file` ask for.

    Ends the program where they ask for help, or for what there is not. A study calls it before its
    imports, which take seconds.
    """
    name = Path(file).stem
    if {"-h", "--help"} & set(sys.argv):
        print(f"{page}\nValues (key=value); size=quick for a first look\n")
        print(OmegaConf.to_yaml(_config(name, [])))
        sys.exit()
    try:
        return _config(name, sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))


def execute(main: Callable[[Study], None]) -> None:
    """Run a study as a command: `python experiments/NAME.py [size=quick] [key=value ...]`."""
    file, page = (str(main.__globals__[key]) for key in ("__file__", "__doc__"))
    code = Path(file).absolute()
    cfg = check(file, page)
    with errors_for_people():
        study = Study(code.stem, cfg, page=page, code=code)
        with _record(study).closing() as log:
            main(study)
            files = study.close()
            finite = {k: v for k, v in study._metrics.items() if math.isfinite(v)}
            log.post("log_metrics", finite)
            log.post("log_files", [str(path) for path in files])
        print(f"\n{len(files)} files in {runs.shown(study.folder)}")


def _config(name: str, overrides: Sequence[str]) -> DictConfig:
    common, own = (OmegaConf.load(SIZES / f"{n}.yaml") for n in ("default", name))
    assert isinstance(own, DictConfig)
    quick = own.pop("quick", {})
    cfg = OmegaConf.merge(common, own)
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, True)
    try:
        given = OmegaConf.from_dotlist(list(overrides))
        size = given.get("size", cfg.size)
        _check_kinds(given, cfg)
        merged = OmegaConf.merge(cfg, quick if size == "quick" else {}, given)
    except YAMLError:
        raise UserError(f"{' '.join(overrides)}: must be key=value, each value in YAML") from None
    except OmegaConfBaseException as error:
        key = str(error.full_key or overrides)
        hint = did_you_mean(key, [str(k) for k in cfg])
        raise UserError(f"{key}: must be one of {', '.join(map(str, cfg))}{hint}") from None
    if size not in ("full", "quick"):
        raise UserError(f"size={size}: must be one of full, quick")
    assert isinstance(merged, DictConfig)
    return merged


def _check_kinds(given: DictConfig, known: DictConfig) -> None:
    """Raise `UserError` for a value of another kind than the one that it replaces."""
    for key, value in given.items():
        name, usual = str(key), known[key]
        if isinstance(usual, int) and not (type(value) is int and value > 0):
            raise UserError(f"{name}={value}: must be a whole number above 0, such as {usual}")
        if isinstance(usual, float) and type(value) not in (int, float):
            raise UserError(f"{name}={value}: must be a number, such as {usual}")
        if isinstance(usual, ListConfig) and not isinstance(value, ListConfig):
            raise UserError(f"{name}={value}: must be a list, such as {usual}")


def _record(study: Study) -> RunLog:
    """Begin the study's MLflow run."""
    tracking = study.cfg.tracking
    if tracking.uri is None:
        return RunLog(None, None)
    from perceptrail.provenance import flat, origin  # imports PyTorch

    line = recorder.connect(tracking.uri, tracking.experiment)
    tags, texts = origin(command_line())
    run_id = line.call(
        "open_run",
        key=uuid4().hex,
        name=f"study-{study.name}",
        run_dir=str(study.folder.absolute()),
        owner=os.getpid(),
        tags=tags | {"study": study.name},
    )
    log = RunLog(line, run_id)
    log.post("log_params", flat(study.cfg))
    log.post("log_texts", texts)
    return log


def launch(
    jobs: Sequence[Sequence[str]], *, folder: Path, launcher: str, processes: int | None = None
) -> Sequence[JobReturn]:
    """Have a Hydra launcher run jobs of train.py, each given by its overrides, below a folder.

    In so many processes, where the launcher lets that be chosen.
    """
    from perceptrail.training import run

    before = Singleton.get_state()
    try:
        version.setbase("1.3")
        setup_globals()
        GlobalHydra.instance().clear()
        hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(CONF)))
        overrides = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}"]
        config = hydra.compose_config("train", overrides, run_mode=RunMode.MULTIRUN)
        if "processes" in config.hydra.launcher:
            config.hydra.launcher.processes = processes
        plugin = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(hydra.config_loader, Callbacks(config)),
            task_function=run,
            config=config,
        )
        return plugin.launch(jobs, initial_job_idx=0)
    finally:
        Singleton.set_state(before)
