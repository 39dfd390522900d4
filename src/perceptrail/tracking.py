"""The MLflow store: with drafts.py, which it uses, the only module that imports mlflow.

A run talks to it through `perceptrail.recorder`, which runs it as a process of its own.
"""

import json
import logging
import math
import os
import platform
import re
import shutil
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import yaml
from filelock import FileLock, Timeout
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from mlflow.utils import environment
from sqlalchemy import Engine, event

from perceptrail.drafts import Draft, Gathering, database, write
from perceptrail.errors import UserError
from perceptrail.measures import KINDS, Kind
from perceptrail.passwords import masked
from perceptrail.processes import identity, is_alive
from perceptrail.runs import ARCHITECTURE, METRICS, MODEL, StoredRun, read_json

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
# Looks through all that is installed, to find that a model needs what is installed here.
environment.warn_dependency_requirement_mismatches = lambda _: None  # type: ignore

KEY, RUN_DIR, HOST, PROCESS = (f"perceptrail.{n}" for n in ("key", "run_dir", "host", "process"))
OUTCOME, REASON = "perceptrail.outcome", "perceptrail.reason"
SWEEP_DIR, OWNER = "perceptrail.sweep_dir", "perceptrail.owner."
TRIAL_STUDY, TRIAL_NUMBER = "trial.study", "trial.number"
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAILED": "FAILED", "KILLED": "KILLED"}
PARENT = "mlflow.parentRunId"
# What the logged model needs.
SERVING = ("torch", "numpy", "pandas", "safetensors", "mlflow", "hydra-core")
SERVED = tuple(  # and its code
    f"{name}.py"
    for name in (
        *("__init__", "activations", "convolutional", "errors", "lean", "linear", "losses"),
        *("measures", "model", "network", "prediction", "tasks"),
        *("data/__init__", "data/dataset", "data/table", "data/targets"),
    )
)
RUNS_AT_ONCE = 16  # written together, if they end that fast
SECONDS_BETWEEN_SAMPLES, BATCH_OF_SAMPLES = 2.0, 150  # of the machine's load


class _LoadMonitor(SystemMetricsMonitor):
    """MLflow's monitor with a loop that leaves the processors to the training.

    MLflow's own reads the run from the store and writes to it at every sample; this one writes
    every half minute.
    """

    def monitor(self) -> None:
        """Sample every two seconds."""
        client, samples = MlflowClient(self._tracking_uri), []
        ended = False
        while not ended:
            ended = self._shutdown_event.wait(SECONDS_BETWEEN_SAMPLES)
            self.collect_metrics()
            now, load = time.time_ns() // 1_000_000, self.aggregate_metrics()
            samples += [Metric(f"system/{k}", v, now, self._logging_step) for k, v in load.items()]
            self._logging_step += 1
            for source in self.monitors:
                source.clear_metrics()
            if ended or len(samples) >= BATCH_OF_SAMPLES:
                client.log_batch(self._run_id, metrics=samples)
                samples = []


class _Gathering(Gathering):
    """A client that keeps what it is to write in batches, and does the rest."""

    def __init__(self, client: MlflowClient) -> None:
        super().__init__()
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class Store:
    """One MLflow store, local database or server, and one of its experiments.

    What it stores, it stores without the passwords of addresses.
    Opening a local database also ends the runs of processes that have died on this machine.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri = uri
        self._database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite") else None
        self._steps: dict[str, set[int]] = {}  # of each open run: the epochs' steps it holds
        self._params: dict[str, dict[str, str]] = {}  # and the parameters that it began with
        self._locks: dict[str, FileLock] = {}
        self._monitors: dict[str, _LoadMonitor] = {}
        self._studies: dict[str, tuple[str, str]] = {}  # of each open study: key, tag of its owner
        self._trials: dict[tuple[str, str], str] = {}  # the run of a study's run and trial number
        self._ended: list[Draft] = []  # what is to be written
        self._models: dict[tuple[Any, ...], tuple[TemporaryDirectory[str], Model]] = {}  # of a kind
        mlflow.set_tracking_uri(uri)
        try:
            with self._creation():  # creating the tables races between processes
                if self._database:
                    _write_ahead(self._database)
                self._client = MlflowClient(uri)
                self._experiment = self._open_experiment(experiment)
        except MlflowException as error:
            raise UserError(masked(f"tracking.uri={uri}: {error.message}")) from error
        except sqlite3.DatabaseError as error:  # no database, or none that can be opened
            raise UserError(masked(f"tracking.uri={uri}: {error}")) from error
        self._end_dead_runs()

    def _creation(self) -> FileLock | nullcontext[None]:
        return FileLock(f"{self._database}.lock") if self._database else nullcontext()

    def _open_experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        place = self._database.parent / "mlartifacts" if self._database else None
        location = place.absolute().as_uri() if place else None
        try:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # what the pages show
            return str(self._client.create_experiment(name, location, tags=kind))
        except MlflowException:  # another process came first
            created = self._client.get_experiment_by_name(name)
            if created is None:
                raise
            return str(created.experiment_id)

    # Runs

    def open_run(
        self,
        *,
        key: str,
        name: str,
        run_dir: str,
        owner: int,
        tags: Mapping[str, str],
        parent: str | None = None,
        system_metrics: bool = False,
    ) -> str:
        """Begin the run called `key`, or go on with it, and return its id.

        `owner` is the process that trains, `parent` a study's key or any run's id. Raises
        `UserError` if another process has the run open.
        """
        lock = FileLock(Path(run_dir) / ".open")
        try:
            lock.acquire(timeout=10)
        except Timeout:
            raise UserError(f"{run_dir}: another process is still writing this run") from None
        own = self._marks(key=key, run_dir=run_dir, owner=owner, parent=parent)
        found = self._search(f"tags.`{KEY}` = '{key}'")
        if found:
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            self.set_tags(run_id, own | {f"resumed.{k}": v for k, v in tags.items()})
            history = self._client.get_metric_history(run_id, "epoch")
            self._steps[run_id] = {metric.step for metric in history}
            self._params[run_id] = found[0].data.params
        else:
            given = {k: masked(v)[:8000] for k, v in (own | dict(tags)).items()}
            run = self._client.create_run(self._experiment, run_name=name, tags=given)
            run_id = str(run.info.run_id)
            self._steps[run_id], self._params[run_id] = set(), {}
        self._locks[run_id] = lock
        self._note_trial(run_id, own | dict(tags))
        if system_metrics:
            monitor = _LoadMonitor(run_id, resume_logging=bool(found), tracking_uri=self._uri)
            monitor.start()
            self._monitors[run_id] = monitor
        return run_id

    def _marks(self, *, key: str, run_dir: str, owner: int, parent: str | None) -> dict[str, str]:
        """The tags by which a run is found again."""
        own = {KEY: key, RUN_DIR: run_dir, HOST: socket.gethostname(), PROCESS: identity(owner)}
        return own | ({PARENT: self._study_id(parent)} if parent else {})

    @cached_property
    def _whole(self) -> Experiment:
        return self._client.get_experiment(self._experiment)

    def _note_trial(self, run_id: str, tags: Mapping[str, str]) -> None:
        if PARENT in tags and TRIAL_NUMBER in tags:
            self._trials[tags[PARENT], tags[TRIAL_NUMBER]] = run_id

    def log_run(
        self,
        run_id: str,
        calls: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]],
        *,
        name: str,
        tags: Mapping[str, str],
        status: str,
        note: str = "",
        **marks: Any,
    ) -> None:
        """Store a run that has ended, of whatever `calls` (method, args, kwargs) there were for it.

        The others are the arguments of `open_run` and `close_run`. In a database, which `flush`
        writes it to, the run is there whole or not at all, under the id that is given.
        """
        store = database(self._client)
        assert store is not None
        own = self._marks(**marks) | dict(tags)
        given = {key: masked(value)[:8000] for key, value in own.items()}
        draft = Draft(store, self._whole, run_id, name=name, tags=given)
        self._steps[run_id], self._params[run_id] = set(), {}
        client, self._client = self._client, draft  # type: ignore[assignment]
        try:
            for method, args, kwargs in calls:
                getattr(self, method)(run_id, *args, **kwargs)
            if note:
                self.set_tags(run_id, {"mlflow.note.content": note})
        finally:
            self._client = client
            self._steps.pop(run_id)
            self._params.pop(run_id, None)
        draft.end(status)
        self._ended.append(draft)
        self._note_trial(run_id, own)
        if len(self._ended) == RUNS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write the runs that have ended, in one transaction."""
        if self._ended:
            ended, self._ended = self._ended, []
            store = database(self._client)
            assert store is not None
            write(store, ended, experiment=self._experiment)

    def close_run(self, run_id: str, *, status: str, note: str = "") -> None:
        """End a run as FINISHED, FAILED or KILLED; the note is what the UI shows of it."""
        if monitor := self._monitors.pop(run_id, None):
            monitor.finish()
        if note:
            self.set_tags(run_id, {"mlflow.note.content": note})
        self._client.set_terminated(run_id, status)
        self._steps.pop(run_id, None)
        self._params.pop(run_id, None)
        if lock := self._locks.pop(run_id, None):
            lock.release()

    def abandon(self) -> None:
        """End as KILLED whatever is still open: the process that trained has died."""
        for run_id in list(self._locks):
            self.close_run(run_id, status="KILLED")
        for run_id in list(self._studies):
            self.close_study(run_id, status="KILLED")
        for place, _ in self._models.values():
            place.cleanup()
        self.flush()

    def _end_dead_runs(self) -> None:
        here = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
        for run in self._search(here):
            if not is_alive(run.data.tags[PROCESS]):
                self._client.set_terminated(run.info.run_id, "KILLED")
        for run in self._search(f"attributes.status = 'RUNNING' and tags.`{SWEEP_DIR}` != ''"):
            with self._sharing(run.data.tags[KEY]):
                self._end_left_study(run.info.run_id, status="KILLED")

    def _search(
        self, query: str, *, order: str = "start_time DESC", limit: int = 1000
    ) -> list[Run]:
        return list(
            self._client.search_runs(
                [self._experiment],
                query,
                ViewType.ACTIVE_ONLY,
                limit,
                [f"attributes.{order}"] if order.startswith("start") else [order],
            )
        )

    def find(self, name: str, *, metric: str, mode: str) -> StoredRun:
        """A run by name: `latest`, `best` (by its best value of `metric`), or a run id.

        Raises `UserError` when there is none.
        """
        if name in ("latest", "best"):
            order = "start_time DESC"
            if name == "best":
                order = f"metrics.`best/{metric}` {'ASC' if mode == 'min' else 'DESC'}"
            runs = self._search(
                f"attributes.status = 'FINISHED' and tags.`{RUN_DIR}` != ''", order=order
            )
            runs = [r for r in runs if name == "latest" or f"best/{metric}" in r.data.metrics]
            if not runs:
                raise UserError(f"run={name}: the experiment holds no finished run yet")
            run = runs[0]
        else:
            try:
                run = self._client.get_run(name)
            except MlflowException:
                raise UserError(
                    f"run={name}: there is no such run; give latest, best, an MLflow run id or a "
                    "run directory"
                ) from None
        return StoredRun(run.info.run_id, Path(run.data.tags.get(RUN_DIR, "")))

    def fetch(self, run_id: str, *, to: str) -> None:
        """Copy what a finished run left into the folder `to`, laid out as a run directory."""
        folder = Path(to)
        try:
            model = self._client.download_artifacts(run_id, MODEL, to)
            config = self._client.download_artifacts(run_id, "config", to)
            self._client.download_artifacts(run_id, METRICS, to)
        except MlflowException as error:
            raise UserError(f"run={run_id}: it holds no finished model ({error.message})") from None
        shutil.move(config, folder / ".hydra")
        Path(model).rename(folder / "logged")
        (folder / "logged" / "data" / MODEL).rename(folder / MODEL)

    # Studies: runs that several processes share, parents of the runs of their trials

    def open_study(
        self, *, key: str, name: str, run_dir: str, owner: int, tags: Mapping[str, str]
    ) -> str:
        """Begin the study called `key`, or go on with it, and return the id of its run."""
        with self._sharing(key):
            found = self._search(f"tags.`{KEY}` = '{key}'", order="start_time ASC")
            own = {KEY: key, SWEEP_DIR: run_dir}
            run = found[0] if found else self._client.create_run(self._experiment, None, own, name)
            run_id = str(run.info.run_id)
            mark = f"{OWNER}{socket.gethostname()}.{owner}"
            given = {f"resumed.{k}" if found else k: v for k, v in tags.items()}
            self.set_tags(run_id, own | given | {mark: identity(owner)})
            self._client.update_run(run_id, status="RUNNING")
        self._studies[run_id] = (key, mark)
        return run_id

    def close_study(self, run_id: str, *, status: str) -> None:
        """Leave a study, which ends when no other process works on it."""
        key, mark = self._studies.pop(run_id)
        with self._sharing(key):
            self._client.delete_tag(run_id, mark)
            self._end_left_study(run_id, status=status)

    def _end_left_study(self, run_id: str, *, status: str) -> None:
        here = OWNER + socket.gethostname() + "."
        owners = {k: v for k, v in self._client.get_run(run_id).data.tags.items() if OWNER in k}
        if all(mark.startswith(here) and not is_alive(own) for mark, own in owners.items()):
            self._client.set_terminated(run_id, status)

    def _sharing(self, key: str) -> FileLock:
        """A lock between the processes of one machine that share a study."""
        return FileLock(Path(gettempdir()) / f"perceptrail-{key}.lock")

    def _study_id(self, parent: str) -> str:
        """The run of the study with this key, or the run id itself."""
        known = {key: run_id for run_id, (key, _) in self._studies.items()}
        if parent not in known:
            found = self._search(f"tags.`{KEY}` = '{parent}'", order="start_time ASC")
            return str(found[0].info.run_id) if found else parent
        return known[parent]

    def in_study(self, key: str, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method for the run of the study with this key."""
        getattr(self, method)(self._study_id(key), *args, **kwargs)

    def open_trial(self, run_id: str, number: int, *, called: str, owner: int) -> None:
        """Begin the run of a trial that is the parent of several."""
        name = str(self._client.get_run(run_id).info.run_name)
        tags = {KEY: called, PARENT: run_id, TRIAL_STUDY: name, TRIAL_NUMBER: str(number)}
        tags |= {HOST: socket.gethostname(), PROCESS: identity(owner)}
        self._client.create_run(self._experiment, None, tags, f"{name}-trial-{number}")

    def mark_trial(self, run_id: str, number: int, *, outcome: str, reason: str = "") -> None:
        """Say on the run of a study's trial how that ended: COMPLETE, PRUNED, FAILED or KILLED.

        A trial that has no run, since it ended before it opened one, is given one.
        """
        child = self._trial(run_id, number)
        if child is None:
            name = str(self._client.get_run(run_id).info.run_name)
            tags = {PARENT: run_id, TRIAL_STUDY: name, TRIAL_NUMBER: str(number)}
            child = self._client.create_run(self._experiment, None, tags, f"{name}-trial-{number}")
        self.set_tags(child.info.run_id, {OUTCOME: outcome} | ({REASON: reason} if reason else {}))
        if child.info.status != STATUS[outcome]:
            ended = child.info.end_time
            self._client.set_terminated(child.info.run_id, STATUS[outcome], ended)

    def mark_trials(self, run_id: str, ended: Mapping[int, tuple[str, str]]) -> None:
        """Make the runs agree with the outcome and reason of all trials that have ended."""
        known: dict[int, str | None] = {}
        for child in sorted(self._children(run_id), key=lambda run: RUN_DIR not in run.data.tags):
            number = int(child.data.tags[TRIAL_NUMBER])
            if number in known:  # its own run came after it had been given one
                if RUN_DIR not in child.data.tags:
                    self._client.delete_run(child.info.run_id)
            else:
                known[number] = child.data.tags.get(OUTCOME)
        for number, (outcome, reason) in ended.items():
            if known.get(number) != outcome:
                self.mark_trial(run_id, number, outcome=outcome, reason=reason)

    def _trial(self, run_id: str, number: int) -> Run | None:
        """The run of a study's trial, without a search if it was opened here."""
        if known := self._trials.get((run_id, str(number))):
            return self._client.get_run(known)
        found = self._children(run_id, f" and tags.`{TRIAL_NUMBER}` = '{number}'")
        return found[0] if found else None

    def _children(self, run_id: str, condition: str = "") -> list[Run]:
        query = f"tags.`{PARENT}` = '{run_id}' and tags.`{TRIAL_NUMBER}` != ''"
        return self._search(query + condition, order="start_time ASC", limit=50_000)

    def register_best(self, run_id: str, number: int, *, name: str, alias: str = "best") -> None:
        """Register a trial's model under a name, and let the alias mean it."""
        child = self._trial(run_id, number)
        assert child is not None  # marked before
        child = self._client.get_run(child.info.run_id)  # which a search leaves without outputs
        models = child.outputs.model_outputs if child.outputs else []
        if not models:
            return  # an application that logs none
        try:
            known = self._client.get_registered_model(name)
        except MlflowException:
            known = self._client.create_registered_model(name)
        if alias in known.aliases:
            current = self._client.get_model_version_by_alias(name, alias)
            if current.run_id == child.info.run_id:
                return
        model = models[0].model_id
        made = self._client.create_model_version(
            name, f"models:/{model}", child.info.run_id, model_id=model
        )
        self._client.set_registered_model_alias(name, alias, made.version)

    # What a run holds

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Store parameters; one that differs from what the run began with becomes a tag."""
        known = self._params.pop(run_id, None)
        if known is None:
            known = self._client.get_run(run_id).data.params
        params = {_named(key): masked(value)[:6000] for key, value in params.items()}
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(new), 100):
            self._client.log_batch(run_id, params=new[start : start + 100])
        changed = {k: v for k, v in params.items() if k in known and known[k] != v}
        self.set_tags(run_id, {f"resumed.{key}": value for key, value in changed.items()})

    def log_row(self, run_id: str, row: Mapping[str, float]) -> None:
        """Store an epoch's metrics at its step, once, however often they come."""
        step = int(row["step"])
        if step not in self._steps[run_id]:
            self.log_metrics(run_id, {k: v for k, v in row.items() if k != "step"}, step=step)
            self._steps[run_id].add(step)

    def log_metrics(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        *,
        step: int = 0,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Store metrics, and tags that say more about them: all or nothing."""
        now = time.time_ns() // 1_000_000
        self._client.log_batch(
            run_id,
            metrics=[Metric(_named(key), value, now, step) for key, value in metrics.items()],
            tags=[RunTag(_named(key), masked(value)[:8000]) for key, value in (tags or {}).items()],
        )

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Store tags; they replace what was there."""
        if tags:
            self.log_metrics(run_id, {}, tags=tags)

    def log_all(
        self, run_id: str, calls: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]]
    ) -> None:
        """Do many calls (method, args, kwargs) for a run, with all their values in one write."""
        client, self._client = self._client, _Gathering(self._client)  # type: ignore[assignment]
        try:
            for method, args, kwargs in calls:
                getattr(self, method)(run_id, *args, **kwargs)
            gathered: Any = self._client
        finally:
            self._client = client
        metrics = gathered.metrics
        params, tags = list(gathered.params.values()), list(gathered.tags.values())
        for n in range(max(-(-len(metrics) // 800), -(-len(params) // 100), -(-len(tags) // 100))):
            few, many = slice(100 * n, 100 * (n + 1)), slice(800 * n, 800 * (n + 1))
            client.log_batch(run_id, metrics[many], params[few], tags[few])  # MLflow's limits

    def log_texts(self, run_id: str, texts: Mapping[str, str]) -> None:
        """Store texts as files."""
        client: Any = self._client
        if isinstance(client, Draft):
            for name, text in texts.items():
                client.log_text(run_id, masked(text), name)
            return
        if not texts:
            return
        with TemporaryDirectory() as folder:
            for name, text in texts.items():
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(masked(text))
            self._client.log_artifacts(run_id, folder)

    def log_environment(self, run_id: str) -> None:
        """Store the versions of all installed packages, and what machine this is."""
        self.log_texts(run_id, {"environment/packages.txt": _packages()})
        self.set_tags(run_id, _machine())

    def log_dataset(
        self, run_id: str, *, name: str, digest: str, source: str, facts: Mapping[str, Any]
    ) -> None:
        """Store which data the run is trained on, by the digest of its bytes."""
        data = Dataset(
            name=name,
            digest=digest[:36],  # MLflow's limit
            source_type="local",
            source=json.dumps({"uri": source}),
            schema=None,
            profile=json.dumps(facts),
        )
        use = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(run_id, [DatasetInput(data, [use])])

    def log_files(self, run_id: str, paths: Iterable[str], *, folder: str | None = None) -> None:
        """Store files."""
        files = [Path(path) for path in paths]
        configs = [path for path in files if path.suffix == ".yaml"]  # which may hold addresses
        place = f"{folder}/" if folder else ""
        self.log_texts(run_id, {f"{place}{path.name}": path.read_text() for path in configs})
        for path in files:
            if path not in configs:
                self._client.log_artifact(run_id, str(path), folder)

    def log_model(self, run_id: str, path: str, *, code: Sequence[str] = ()) -> None:
        """Store the model that `save` wrote, as one that MLflow can load and serve.

        It needs no pickle: weights and architecture as written, and the source that reads them,
        `code` being that of the network where it is one's own.
        """
        facts = read_json(Path(path) / ARCHITECTURE)
        task = KINDS[facts["task"]["name"]]
        logged = self._client.create_logged_model(
            self._experiment, name=MODEL, source_run_id=run_id, model_type=task.model
        )
        # All but the weights is the same for every run of a search: saved once, then changed.
        own = {k: facts.get(k) for k in ("shape", "classes", "targets", "columns")}
        kind = (str(own), task, *code, "module" in facts)
        if kind not in self._models:
            made = TemporaryDirectory()
            _save_model(made.name, path, signature=_signature(facts, task), code=code)
            self._models[kind] = (made, Model.load(made.name))
        place, model = self._models[kind]
        folder = Path(place.name)
        weights = folder / "data" / MODEL
        shutil.rmtree(weights)
        shutil.copytree(path, weights)
        model.run_id, model.model_id, model.model_uuid = run_id, logged.model_id, uuid.uuid4().hex
        model.utc_time_created = str(datetime.now(UTC).replace(tzinfo=None))
        model.model_size_bytes = sum(file.stat().st_size for file in weights.iterdir())
        with (folder / "MLmodel").open("w") as file:  # as Model.save does, by libyaml
            yaml.dump(model.to_dict(), file, yaml.CSafeDumper, default_flow_style=False)
        self._client.log_model_artifacts(logged.model_id, str(folder))
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def ping(self, run_id: str) -> None:
        """Answer, which says that everything asked for before is done."""


def _signature(facts: Mapping[str, Any], task: Kind) -> ModelSignature:
    """What a model takes, a table's columns or else rows of numbers, and what it answers."""
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.float32), (-1, math.prod(facts["shape"])))
    ]
    if columns := facts.get("columns"):
        # Of any type, since MLflow would refuse whole numbers where there were others.
        inputs = [ColSpec(AnyType(), k) for k in (*columns["numbers"], *columns["categories"])]
    outputs: list[ColSpec | TensorSpec] = [ColSpec("string", task.text)] if task.text else []
    outputs += [ColSpec("double", name) for name in facts["classes"] or facts["targets"]]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _example(inputs: Schema) -> Any:
    if isinstance(row := inputs.inputs[0], TensorSpec):
        return np.zeros((2, row.shape[1]), np.float32)
    return pd.DataFrame([dict.fromkeys(inputs.input_names(), 0)] * 2)


def _save_model(folder: str, path: str, *, signature: ModelSignature, code: Sequence[str]) -> None:
    package = Path(__file__).parent
    with TemporaryDirectory() as place:
        own = Path(place) / package.name
        (own / "data").mkdir(parents=True)
        for name in SERVED:
            shutil.copy(package / name, own / name)
        for init in own.rglob("__init__.py"):  # where the rest is installed, it is found
            with init.open("a") as file:
                file.write('\n__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n')
        # Not mlflow.pyfunc.log_model, which imports PyTorch to predict the input example.
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=Model(),
            loader_module=f"{package.name}.prediction",
            data_path=path,
            code_paths=[str(own), *code],
            signature=signature,
            input_example=_example(signature.inputs),
            pip_requirements=[f"{name}=={version(name)}" for name in SERVING],
        )


def best_runs(uri: str, *, metric: str) -> list[dict[str, Any]]:
    """The finished runs of all experiments that have `metric`, the highest first; changes nothing.

    Each is a dict of name, params, metrics, the name of its data set and the day on which it was
    begun. Raises `UserError` when the store cannot be read.
    """
    try:
        client = MlflowClient(uri)
        found = client.search_runs(
            [experiment.experiment_id for experiment in client.search_experiments()],
            f"attributes.status = 'FINISHED' and metrics.`{metric}` > -1e300",
            order_by=[f"metrics.`{metric}` DESC"],
        )
    except MlflowException as error:
        raise UserError(f"tracking.uri={uri}: {error.message}") from error
    return [
        {
            "name": run.info.run_name,
            "params": run.data.params,
            "metrics": run.data.metrics,
            "data": ", ".join(
                use.dataset.name for use in (run.inputs.dataset_inputs if run.inputs else ())
            ),
            "begun": time.strftime("%Y-%m-%d", time.gmtime(run.info.start_time / 1000)),
        }
        for run in found
    ]


def _write_ahead(database: Path) -> None:
    """Let a commit append to a log, where it would wait three times for the disk.

    The database keeps to it; one that is busy now is told another time.
    """
    with closing(sqlite3.connect(database)) as connection, suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode=WAL")


@event.listens_for(Engine, "connect")
def _wait_less(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=NORMAL")  # in a write-ahead log nothing can break


def _named(key: str) -> str:
    """A name as MLflow allows it; it refuses other signs, and whatever else comes with them."""
    return re.sub(r"[^/\w.\- :]", "_", key)[:250]


@cache
def _packages() -> str:
    found = sorted({f"{d.name}=={d.version}" for d in distributions()}, key=str.lower)
    return "\n".join(found) + "\n"


@cache
def _machine() -> dict[str, str]:
    return {
        "machine.system": platform.platform(),
        "machine.cores": str(os.cpu_count()),
        "machine.memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "machine.processor": _processor_name(),
        "machine.python": platform.python_version(),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
