"""A stored run on the test split, recorded in that same run."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from math import nan
from pathlib import Path
from statistics import mean, stdev
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from perceptrail import config, recorder, runs, tasks
from perceptrail.assignment import extras, own_loss
from perceptrail.build import dataset, task_name
from perceptrail.data.dataset import Dataset, Part
from perceptrail.data.image import image_files, read_digit
from perceptrail.data.images import read_image
from perceptrail.errors import UserError
from perceptrail.invocation import typed
from perceptrail.measures import said
from perceptrail.network import Module, Network, load
from perceptrail.passwords import masked
from perceptrail.prediction import judge, logits_of


def locate(cfg: DictConfig) -> Path:
    """The directory of the finished run that `cfg.run` names: on this disk, else from the store.

    Raises `UserError` when there is none.
    """
    found = None if cfg.run == "best" else runs.find(cfg.run, finished=True)
    if found is not None:
        return found
    unfinished = runs.find(cfg.run)
    if unfinished is not None:
        raise UserError(
            f"run={cfg.run}: {unfinished} has not finished; "
            f"go on with it by {typed('train')} {runs.argument('resume', unfinished)}"
        )
    if cfg.tracking.uri is None:
        raise UserError(f"run={cfg.run}: there is no such run here; give latest or a run directory")
    line = recorder.connect(cfg.tracking.uri, cfg.tracking.experiment)
    stored: runs.StoredRun = line.call(
        "find", cfg.run, metric=cfg.monitor.metric, mode=cfg.monitor.mode
    )
    if (stored.run_dir / runs.METRICS).is_file():
        return stored.run_dir
    copy = Path(mkdtemp(prefix="perceptrail-"))  # it was trained elsewhere
    line.call("fetch", stored.run_id, to=str(copy))
    store = {"uri": masked(cfg.tracking.uri), "experiment": cfg.tracking.experiment}
    runs.write_json(copy / runs.RECORD, {"run_id": stored.run_id, **store})
    return copy


def evaluate(cfg: DictConfig) -> float:
    """Judge the best weights of a stored run, or of each run below a folder, on the test split.

    Returns the accuracy, or what else the task is known by; of several runs, the mean.
    """
    config.validate(cfg)
    below = sorted(record.parent for record in Path(cfg.run).glob(f"*/{runs.RECORD}"))
    folders = [run for run in below if (run / runs.METRICS).is_file()] or [locate(cfg)]
    found = [_evaluate(folder, cfg) for folder in folders]
    known_by = list(found[0])[:2][-1]
    if any(known_by not in metrics for metrics in found):
        print(f"\n{len(found)} runs of different tasks, which have no mean")
        return nan
    values = [metrics[known_by] for metrics in found]
    if len(values) > 1:
        spread = said({known_by: stdev(values)}).rpartition(" ")[2]
        print(
            f"\n{len(values)} runs: test {said({known_by: mean(values)})} "
            f"± {spread} (mean ± standard deviation)"
        )
    return mean(values)


def _evaluate(folder: Path, cfg: DictConfig) -> dict[str, float]:
    stored = _settings(folder)
    log = recorder.log_of(folder, cfg.tracking.uri)  # its process imports MLflow meanwhile
    network, facts = load(folder / runs.MODEL)
    data = dataset(stored)
    _check_same(facts, data, key="data.path" if stored.data.get("path") else "data")
    x, y, rest = _test_parts(data)
    examples = len(y)

    def counted() -> Iterator[Part]:
        nonlocal examples
        for part in rest:
            examples += len(part[1])
            yield part

    metrics: dict[str, float] = {}
    drawn: list[Path] = []
    if task_name(stored) == config.OWN:
        metrics = _own_test(network, chain([(x, y)], counted()))
    if facts.get("task", True):
        task = tasks.read(facts, own_loss=own_loss(stored))
        judgement = judge(network, x, y, task=task, extras=extras(stored, task), rest=counted())
        metrics = metrics or judgement.metrics
        from perceptrail import gallery  # imports Matplotlib

        drawn = gallery.draw_judgement(
            folder / "figures" / "test",
            *(network, x, y, judgement),
            dataset=data,
            task=task.name,
        )
    results = {f"test/{name}": value for name, value in metrics.items()}
    earlier = runs.read_json(folder / runs.METRICS)
    runs.write_json(folder / runs.METRICS, {**earlier, **results})
    log.post("log_files", [str(path) for path in drawn], folder="figures/test")
    log.post("log_files", [str(folder / runs.METRICS)])
    log.call("log_metrics", results)
    told = [said(metrics), f"loss {metrics['loss']:.4f}" if "loss" in metrics else ""]
    print(
        f"test {', '.join(filter(None, told))}  "
        f"({examples:,} examples of {data.name})\n"
        f"run:  {runs.shown(folder)}" + (f"  (MLflow {log.run_id})" if log.run_id else "")
    )
    asked = "input=TABLE" if data.columns else "image=FILE"
    if facts.get("task", True) and (data.columns or len(data.shape) > 1):
        print(f"next: {typed('predict')} {runs.argument('run', folder)} {asked}")
    return metrics


def _settings(folder: Path) -> DictConfig:
    """What a run was started with."""
    path = folder / runs.SETTINGS / "config.yaml"
    stored = OmegaConf.load(path) if path.is_file() else None
    if not (isinstance(stored, DictConfig) and "data" in stored):
        raise UserError(f"{runs.shown(path)}: does not tell what the run was started with")
    return stored


def _check_same(facts: Mapping[str, Any], data: Dataset, *, key: str) -> None:
    """Check that the data are those of the training, by what is stored beside the network."""
    described = {"shape": data.shape, "classes": data.classes}
    described |= {"columns": data.columns.facts()} if data.columns else {}
    told = json.loads(json.dumps(described))
    changed = [name for name, value in told.items() if facts.get(name, value) != value]
    same = data.streamed is not None or facts.get("digest", data.digest) == data.digest
    if not (changed or same):
        changed = ["values"]
    if changed:
        raise UserError(
            f"{key}={data.source}: holds other data than the run was trained on (other "
            f"{' and '.join(changed)}); its test examples may have been learned from"
        )


def _test_parts(data: Dataset) -> tuple[NDArray[Any], NDArray[Any], Iterator[Part]]:
    """The test part, and more of it in batches where it streams."""
    if data.streamed is None:
        return *data.test(), iter(())
    from perceptrail.data.stream import tested

    parts = tested(data.streamed, classes=len(data.classes))
    return *next(parts), parts


def _own_test(network: Network, parts: Iterable[Part]) -> dict[str, float]:
    """What a LightningModule of one's own logs of the test split."""
    from perceptrail.data.module import VAL_BATCH, Batches  # imports Lightning
    from perceptrail.trainer import tested

    assert isinstance(network, Module)
    tensors = (map(torch.from_numpy, part) for part in parts)
    batches = chain.from_iterable(Batches(x, y, batch_size=VAL_BATCH) for x, y in tensors)
    return tested(network.body, ((network.seen(x), y) for x, y in batches))


def predict(cfg: DictConfig) -> list[str]:
    """Say what a stored run makes of images, or of the rows of a table.

    Of images, prints a line for each; of a table, writes it with columns of what is told, to
    `output` or on the screen. Returns the lines.
    """
    config.validate(cfg)
    if (cfg.image is None) == (cfg.input is None):
        raise UserError("give image=FILE, or input=TABLE with the columns that were trained on")
    return _of_images(cfg) if cfg.input is None else _of_table(cfg)


def _of_table(cfg: DictConfig) -> list[str]:
    from perceptrail.data.table import Columns, read

    network, facts = load(locate(cfg) / runs.MODEL)
    if "columns" not in facts:
        raise UserError(f"input={cfg.input}: the run was not trained on a table; give image=FILE")
    frame = read(cfg.input, key="input", separator=cfg.separator)
    rows = Columns(**facts["columns"]).rows(frame, said=f"input={cfg.input}")
    answers = tasks.read(facts).answers(logits_of(network, rows))
    told = frame.assign(**{f"predicted_{name}": values for name, values in answers.items()})
    lines: str = told.to_csv(index=False)
    if cfg.output is None:
        print(lines, end="")
    else:
        output = Path(cfg.output)
        runs.check_output(output, key="output", inputs=[Path(cfg.input)])
        draft = output.with_name(f"{output.name}.tmp")
        draft.write_text(lines)
        draft.replace(output)
        print(f"{len(told):,} rows in {cfg.output}")
    return lines.splitlines()


def _of_images(cfg: DictConfig) -> list[str]:
    files = image_files(Path(cfg.image))
    network, facts = load(locate(cfg) / runs.MODEL)
    shape = tuple(facts["shape"])
    if "pictures" in facts:
        images: list[NDArray[Any]] = [read_image(path, **facts["pictures"]) for path in files]
        for path, image in zip(files, images, strict=True):
            if image.shape != shape:
                raise UserError(f"image={path}: must be of shape {shape}, not {image.shape}")
    elif len(shape) == 2:
        images = [read_digit(path, shape=shape) for path in files]
    else:
        raise UserError(f"run={cfg.run}: its inputs of shape {shape} are not images")
    x = np.stack(images).reshape(len(files), -1)
    answers = tasks.read(facts).answers(logits_of(network, x))
    names = next((answers.pop(text) for text in ("label", "labels") if text in answers), None)
    values = np.stack(list(answers.values()), 1)
    if names is None:  # numbers
        lines = [
            ", ".join(f"{k} {v:.6g}" for k, v in zip(answers, row, strict=True)) for row in values
        ]
    else:
        lines = [f"{n}  ({v:.1%})" for n, v in zip(names, values.max(1), strict=True)]
    for path, line in zip(files, lines, strict=True):
        print(f"{path}: {line}")
    return names or lines
