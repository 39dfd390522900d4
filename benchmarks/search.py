"""What a search costs beside its trials, and what its workers and its pruning save, in one run.

    python benchmarks/search.py overhead --trials 200
    python benchmarks/search.py workers
    python benchmarks/search.py pruning --seeds 3

`overhead`: milliseconds a trial, the start of the search left out. An empty function; XOR trainings
of one epoch without and with MLflow, less the median time of such a training without it.
`workers`: trials per minute of two workers over those of one, on MNIST with one thread each.
`pruning`: epochs of a pruned search over those of an unpruned one on MNIST, and the best validation
accuracy of each. Figures go to benchmarks/results/search-NAME.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

from optuna.trial import FrozenTrial

from perceptrail.search.storage import open_storage

ROOT = Path(__file__).parent.parent
EMPTY = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    return 0.0

main()
"""
MNIST = ["hparams_search=mnist_learning_rate", f"data.dir={ROOT / 'data' / 'mnist'}"]


def overhead(options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a trial beside the training."""
    given = [f"hydra.sweeper.n_trials={options.trials}", "hydra/sweeper/sampler=random"]
    xor = ["hparams_search=xor", "trainer.max_epochs=1", "hydra/sweeper/pruner=none", *given]
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "empty.py"
        app.write_text(EMPTY)
        empty = _search(app, ["hydra/sweeper=optuna", "+x=interval(0,1)", *given], folder)
    with tempfile.TemporaryDirectory() as folder:
        plain = _search(ROOT / "train.py", ["tracking=none", *xor], folder)
        stored = [json.loads(path.read_text()) for path in Path(folder).glob("*/metrics.json")]
        bare = 1000 * median(metrics["time/total_s"] for metrics in stored)
    with tempfile.TemporaryDirectory() as folder:
        tracked = _search(ROOT / "train.py", xor, folder)
    each = [_milliseconds(trials) for trials in (empty, plain, tracked)]
    return {
        "trials": options.trials,
        "empty function, ms": each[0],
        "training of XOR alone, ms": bare,
        "XOR, ms beside it": each[1] - bare,
        "XOR with MLflow, ms beside it": each[2] - bare,
    }


def workers(options: argparse.Namespace) -> dict[str, float]:
    """Trials per minute with two workers over those with one, a thread for each."""
    each = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            given = [*MNIST, "tracking=none", "trainer.max_epochs=2", "optimizer.lr=1e-3"]
            given += ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none"]
            given += [f"hydra.sweeper.n_jobs={count}", "hydra.sweeper.n_trials=12"]
            each[count] = _milliseconds(_search(ROOT / "train.py", given, folder))
    return {f"{n} at a time, ms": ms for n, ms in each.items()} | {"ratio": each[1] / each[2]}


def pruning(options: argparse.Namespace) -> dict[str, float]:
    """Epochs and best validation accuracy with and without pruning, the mean over seeds."""
    figures: dict[str, float] = {}
    for pruner in ("none", "hyperband"):
        epochs, best = [], []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                given = [*MNIST, "tracking=none", "monitor.metric=val/acc", "monitor.mode=max"]
                given += [f"hydra/sweeper/pruner={pruner}", f"hydra.sweeper.seed={seed}"]
                trials = _search(ROOT / "train.py", given, folder)
                histories = Path(folder).glob("*/history.csv")
                epochs.append(sum(len(path.read_text().splitlines()) - 1 for path in histories))
                best.append(max(t.value for t in trials if t.value is not None))
        figures |= {f"{pruner}: epochs": mean(epochs), f"{pruner}: best val/acc": mean(best)}
    share = figures["hyperband: epochs"] / figures["none: epochs"]
    return figures | {"share of the epochs": share}


def _search(app: Path, given: list[str], folder: str) -> list[FrozenTrial]:
    """Run a search with one thread a process; its trials."""
    fixed = [f"hydra.sweep.dir={folder}", "hydra.sweeper.study_name=s"]
    command = [sys.executable, str(app), "-m", *given, *fixed, "hydra.sweeper.figures=false"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    return open_storage(f"{folder}/study.journal").get_all_trials(0)


def _milliseconds(trials: list[FrozenTrial]) -> float:
    """The time from the end of the first trial to that of the last, for each of the others."""
    ends = sorted(t.datetime_complete for t in trials if t.datetime_complete)
    return 1000 * (ends[-1] - ends[0]).total_seconds() / (len(ends) - 1)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "overhead": overhead,
    "workers": workers,
    "pruning": pruning,
}


def main() -> None:
    """Run the parts that were asked for, print and keep their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--trials", type=int, default=200, help="of each search of the overhead")
    parser.add_argument("--seeds", type=int, default=3, help="searches with and without pruning")
    options = parser.parse_args()
    for part in options.parts:
        figures = PARTS[part](options)
        for name, value in figures.items():
            print(f"{part:10} {name:32} {value:10.4g}", flush=True)
        results = ROOT / "benchmarks" / "results" / f"search-{part}.json"
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
