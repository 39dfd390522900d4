"""A stored run on the test split, recorded in that same run."""

from pathlib import Path
from statistics import mean, stdev
from tempfile import mkdtemp

import numpy as np
from omegaconf import DictConfig, OmegaConf

from perceptrail import config, gallery, recorder, runs
from perceptrail.build import dataset
from perceptrail.data.image import image_files, read_digit
from perceptrail.errors import UserError
from perceptrail.network import load
from perceptrail.passwords import masked, unmasked
from perceptrail.prediction import judge, logits_of, probabilities


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
            f"go on with it by python train.py resume={unfinished}"
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

    Returns the accuracy; of several runs, the mean.
    """
    config.validate(cfg)
    below = sorted(record.parent for record in Path(cfg.run).glob(f"*/{runs.RECORD}"))
    folders = [run for run in below if (run / runs.METRICS).is_file()] or [locate(cfg)]
    accuracies = [_evaluate(folder, cfg) for folder in folders]
    if len(accuracies) > 1:
        print(
            f"\n{len(accuracies)} runs: test accuracy {mean(accuracies):.2%} "
            f"± {stdev(accuracies):.2%} (mean ± standard deviation)"
        )
    return mean(accuracies)


def _evaluate(folder: Path, cfg: DictConfig) -> float:
    record = runs.read_json(folder / runs.RECORD)
    stored = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert isinstance(stored, DictConfig)
    if record["run_id"]:  # its process imports MLflow meanwhile
        uri = unmasked(record["uri"], cfg.tracking.uri, key="tracking.uri")
        line = recorder.connect(uri, record["experiment"])

    network, _ = load(folder / runs.MODEL)
    data = dataset(stored)
    x, y = data.test()
    judgement = judge(network, x, y)
    results = {"test/loss": judgement.loss, "test/acc": judgement.accuracy}
    figures = folder / "figures" / "test"
    drawn = gallery.draw_judgement(figures, network, x, y, judgement, dataset=data)
    earlier = runs.read_json(folder / runs.METRICS)
    runs.write_json(folder / runs.METRICS, {**earlier, **results})
    run_id = record["run_id"]
    if run_id:
        line.post("log_files", run_id, [str(path) for path in drawn], folder="figures/test")
        line.post("log_files", run_id, [str(folder / runs.METRICS)])
        line.call("log_metrics", run_id, results)
    shown = runs.shown(folder)
    print(
        f"test accuracy {judgement.accuracy:.2%}, loss {judgement.loss:.4f}  "
        f"({len(y):,} examples of {data.name})\n"
        f"run:  {shown}" + (f"  (MLflow {run_id})" if run_id else "")
    )
    if len(data.shape) == 2:
        print(f"next: python predict.py run={shown} image=FILE")
    return judgement.accuracy


def predict(cfg: DictConfig) -> list[str]:
    """Name the class of each image; prints a line for each and returns the names."""
    config.validate(cfg)
    files = image_files(Path(cfg.image))
    network, facts = load(locate(cfg) / runs.MODEL)
    shape = tuple(facts["shape"])
    if len(shape) != 2:
        raise UserError(f"run={cfg.run}: its inputs of shape {shape} are not images")
    x = np.stack([read_digit(path, shape=shape).ravel() for path in files])
    probability = probabilities(logits_of(network, x)).numpy()
    names = [facts["classes"][k] for k in probability.argmax(1)]
    for path, name, certainty in zip(files, names, probability.max(1), strict=True):
        print(f"{path}: {name}  ({certainty:.1%})")
    return names
