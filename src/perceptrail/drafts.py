"""A run that is written to MLflow's database whole, once it has ended.

MLflow's client has five requests for a run, and its store some ninety statements; here are a dozen,
in one transaction, by the tables of MLflow itself.
"""

import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from mlflow.entities import (
    DatasetInput,
    Experiment,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.tracking.dbmodels import models as tables
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from mlflow.utils.uri import append_to_uri_path
from mlflow.utils.validation import _validate_batch_log_data
from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError

Row = dict[str, Any]


def database(client: MlflowClient) -> SqlAlchemyStore | None:
    """The store of a client that has a database, and not a server, behind it."""
    store = client._tracking_client.store
    return store if isinstance(store, SqlAlchemyStore) else None


class Gathering:
    """Keeps the values that MLflow's client is given of a run; of equal keys the last."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.params: dict[str, Param] = {}
        self.tags: dict[str, RunTag] = {}

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> None:
        """Keep them."""
        self.metrics += metrics
        self.params |= {param.key: param for param in params}
        self.tags |= {tag.key: tag for tag in tags}


class Draft(Gathering):
    """Stands in for MLflow's client while the values of one new run are gathered.

    Files are stored at once where the store's are local, else when the run ends.
    """

    def __init__(
        self,
        store: SqlAlchemyStore,
        experiment: Experiment,
        run_id: str,
        *,
        name: str,
        tags: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._store, self._experiment, self._run_id = store, experiment, run_id
        self._name, self._start = name, _now()
        self._files = self._place(run_id)
        self._repository = get_artifact_repository(self._files)
        local = _local(self._repository)
        self._apart = None if local else TemporaryDirectory()
        self._folder = Path(self._apart.name if self._apart else str(local))
        own = {"mlflow.runName": name, **tags}
        self.tags = {key: RunTag(key, value) for key, value in own.items()}
        self._inputs: list[DatasetInput] = []
        self._models: list[Row] = []
        self._outputs: list[LoggedModelOutput] = []

    def _place(self, *parts: str) -> str:
        return str(append_to_uri_path(self._experiment.artifact_location, *parts, "artifacts"))

    def _inside(self, *parts: str) -> Path:
        path = self._folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # What MLflow's client offers, as far as the store of runs makes use of it

    def log_inputs(self, run_id: str, datasets: Sequence[DatasetInput]) -> None:
        """Keep what it was trained on."""
        self._inputs += datasets

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        """Store a text as a file."""
        self._inside(artifact_file).write_text(text)

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Store a file."""
        shutil.copyfile(local_path, self._inside(artifact_path or "", Path(local_path).name))

    def create_logged_model(
        self, experiment_id: str, *, name: str, source_run_id: str, model_type: str
    ) -> SimpleNamespace:
        """Keep a model's facts; returns its `model_id`."""
        model_id = f"m-{uuid.uuid4().hex}"
        self._models.append(
            {
                "model_id": model_id,
                "experiment_id": int(experiment_id),
                "name": name,
                "artifact_location": self._place("models", model_id),
                "creation_timestamp_ms": _now(),
                "last_updated_timestamp_ms": _now(),
                "model_type": model_type,
                "status": LoggedModelStatus.PENDING.to_int(),
                "source_run_id": source_run_id,
            }
        )
        return SimpleNamespace(model_id=model_id)

    def log_model_artifacts(self, model_id: str, local_dir: str) -> None:
        """Store a model's files."""
        repository = get_artifact_repository(self._place("models", model_id))
        if folder := _local(repository):
            shutil.copytree(local_dir, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        else:
            repository.log_artifacts(local_dir)

    def finalize_logged_model(self, model_id: str, status: str) -> None:
        """Say that a model is whole."""
        for row in self._models:
            if row["model_id"] == model_id:
                row["status"] = LoggedModelStatus(status).to_int()

    def log_outputs(self, run_id: str, models: Sequence[LoggedModelOutput]) -> None:
        """Keep which models came of it."""
        self._outputs += models

    # The database

    def end(self, status: str) -> None:
        """Note that the run has ended now, with this status; its files are stored."""
        self._status, self._end = status, _now()
        if self._apart:
            with self._apart as folder:
                self._repository.log_artifacts(folder)

    def rows(self, known: Mapping[tuple[str, str], str]) -> dict[Any, list[Row]]:
        """The rows of each table; `known` has the ids of data sets by name and digest."""
        run = {"run_uuid": self._run_id}
        names = {metric.key: metric for metric in self.metrics}  # no number of ours is refused
        _, *texts = _validate_batch_log_data(
            list(names.values()), list(self.params.values()), list(self.tags.values())
        )
        params, tags = ([run | {"key": t.key, "value": t.value} for t in kind] for kind in texts)
        values = [run | self._metric(metric) for metric in self.metrics]
        metrics = list({tuple(row.values()): row for row in values}.values())  # each once
        datasets, inputs, input_tags = self._used(known)
        return {
            tables.SqlRun: [run | self._run()],
            tables.SqlTag: tags,
            tables.SqlParam: params,
            tables.SqlMetric: metrics,
            tables.SqlLatestMetric: list(_latest(metrics)),
            tables.SqlDataset: datasets,
            tables.SqlInput: [*inputs, *map(self._output, self._outputs)],
            tables.SqlInputTag: input_tags,
            tables.SqlLoggedModel: self._models,
        }

    def _run(self) -> Row:
        empty = dict.fromkeys(("source_name", "entry_point_name", "source_version"), "")
        return empty | {
            "name": self._name,
            "source_type": "UNKNOWN",
            "user_id": self.tags["mlflow.user"].value if "mlflow.user" in self.tags else "unknown",
            "status": self._status,
            "start_time": self._start,
            "end_time": self._end,
            "artifact_uri": self._files,
            "experiment_id": int(self._experiment.experiment_id),
        }

    def _metric(self, metric: Metric) -> Row:
        is_nan, value = self._store.sanitize_metric_value(metric.value)
        own = {"key": metric.key, "value": value, "is_nan": is_nan}
        return own | {"timestamp": metric.timestamp, "step": metric.step}

    @property
    def digests(self) -> list[str]:
        """Of the data sets that it was trained on."""
        return [used.dataset.digest for used in self._inputs]

    def _used(self, known: Mapping[tuple[str, str], str]) -> tuple[list[Row], list[Row], list[Row]]:
        """Rows for the data sets that are new, for their use, and for what is said of that."""
        datasets, inputs, tags = [], [], []
        for used in self._inputs:
            data, input_id = used.dataset, uuid.uuid4().hex
            dataset_id = known.get((data.name, data.digest))
            if dataset_id is None:
                dataset_id = uuid.uuid4().hex
                row: Row = {"dataset_uuid": dataset_id, "name": data.name, "digest": data.digest}
                row |= {"dataset_source_type": data.source_type, "dataset_source": data.source}
                row |= {"dataset_schema": data.schema, "dataset_profile": data.profile}
                datasets.append({"experiment_id": int(self._experiment.experiment_id), **row})
            inputs.append(_edge("DATASET", dataset_id, "RUN", self._run_id, input_id))
            tags += [{"input_uuid": input_id, "name": t.key, "value": t.value} for t in used.tags]
        return datasets, inputs, tags

    def _output(self, model: LoggedModelOutput) -> Row:
        return _edge("RUN_OUTPUT", self._run_id, "MODEL_OUTPUT", model.model_id, step=model.step)


def write(store: SqlAlchemyStore, ended: Sequence[Draft], *, experiment: str) -> None:
    """Write runs of an experiment that have ended.

    They are written together, and if that fails one by one, up to the first that fails by itself.
    """
    try:
        _write(store, ended, experiment=experiment)
    except (MlflowException, SQLAlchemyError):  # or another process has brought the same data set
        for draft in ended:
            _write(store, [draft], experiment=experiment)


def _write(store: SqlAlchemyStore, ended: Sequence[Draft], *, experiment: str) -> None:
    table: Any = tables.SqlDataset
    columns = select(table.name, table.digest, table.dataset_uuid)
    own = table.experiment_id == int(experiment)
    used = table.digest.in_([digest for draft in ended for digest in draft.digests])
    whole: dict[Any, list[Row]] = {}
    with store.engine.begin() as connection:
        known = {(n, d): found for n, d, found in connection.execute(columns.where(own, used))}
        for draft in ended:
            for table, rows in draft.rows(known).items():
                whole.setdefault(table, []).extend(rows)
            new = whole[tables.SqlDataset]
            known |= {(row["name"], row["digest"]): row["dataset_uuid"] for row in new}
        for table, rows in whole.items():
            if rows:
                connection.execute(insert(table.__table__), rows)


def _edge(
    source_type: str,
    source: str,
    destination_type: str,
    destination: str,
    own: str | None = None,
    *,
    step: int = 0,
) -> Row:
    ends = {"source_type": source_type, "source_id": source}
    ends |= {"destination_type": destination_type, "destination_id": destination}
    return {"input_uuid": own or uuid.uuid4().hex, **ends, "step": step}


def _local(repository: ArtifactRepository) -> str | None:
    """The folder of a repository that is one on this machine."""
    if not isinstance(repository, LocalArtifactRepository):
        return None
    return str(repository.artifact_dir)


def _latest(metrics: Iterable[Row]) -> Iterable[Row]:
    """Of each metric the value of the last step."""
    last: dict[str, Row] = {}
    for row in sorted(metrics, key=lambda row: (row["step"], row["timestamp"], row["value"])):
        last[row["key"]] = row
    return last.values()


def _now() -> int:
    return time.time_ns() // 1_000_000
