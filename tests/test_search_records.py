"""A search's run in MLflow, read back from a real store."""

import csv
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna import Study
from optuna.trial import TrialState
from running import run as run_command
from search_app.lab import command, opened, run

SPACE = ("x=interval(0, 1)", "y=range(0, 4)")
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
OUTCOME, NUMBER, PARENT = "perceptrail.outcome", "trial.number", "mlflow.parentRunId"


class Tree:
    """A study's run and those of its trials, in the order of their numbers."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        known = self.client.get_experiment_by_name(experiment)
        runs: list[Run] = list(self.client.search_runs([known.experiment_id]))
        parents = [r for r in runs if PARENT not in r.data.tags]
        assert len(parents) == 1
        self.parent = parents[0]
        self.children = sorted(
            (r for r in runs if r.data.tags.get(PARENT) == self.parent.info.run_id),
            key=lambda r: int(r.data.tags[NUMBER]),
        )
        assert len(self.children) == len(runs) - 1

    @property
    def outcomes(self) -> dict[int, str]:
        """How each trial ended."""
        pairs = [(int(r.data.tags[NUMBER]), r.data.tags[OUTCOME]) for r in self.children]
        assert len(dict(pairs)) == len(pairs)  # no trial twice
        return dict(pairs)

    def files(self, folder: str | None = None) -> set[str]:
        """The names of the parent's files."""
        found = self.client.list_artifacts(self.parent.info.run_id, folder)
        return {Path(file.path).name for file in found}


def tracked(folder: Path) -> str:
    return f"tracking.uri=sqlite:///{folder}/mlflow.db"


def outcomes(study: Study) -> dict[int, str]:
    """What MLflow should say of the study's trials."""
    lost = {t.number for t in study.trials if t.user_attrs.get("lost")}
    names = {TrialState.COMPLETE: "COMPLETE", TrialState.PRUNED: "PRUNED"}
    names[TrialState.FAIL] = "FAILED"
    return {t.number: "KILLED" if t.number in lost else names[t.state] for t in study.trials}


def table(folder: Path) -> dict[int, str]:
    with (folder / "trials.csv").open() as file:
        return {int(row["number"]): row["state"] for row in csv.DictReader(file)}


@pytest.mark.slow
def test_parent_and_children(tmp_path: Path) -> None:
    given = ("trouble=choice(none, prune, raise)", "x=choice(0, 0.5)", tracked(tmp_path))
    given = (*given, "hydra/sweeper/sampler=grid")
    folder = tmp_path / "sweep"
    for total in (1, 6):
        figures = f"hydra.sweeper.figures={total == 6}"
        assert run(folder, *given, figures, f"hydra.sweeper.n_trials={total}").returncode == 0
        study, tree = opened(folder), Tree(tmp_path, "tests")
        assert tree.outcomes == outcomes(study)
        assert tree.parent.info.status == "FINISHED"
    assert len(tree.children) == 6
    statuses = {r.data.tags[OUTCOME]: r.info.status for r in tree.children}
    assert statuses == {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAILED": "FAILED"}
    failed = next(r for r in tree.children if r.data.tags[OUTCOME] == "FAILED")
    assert failed.data.tags["perceptrail.reason"] == "RuntimeError: no luck with x=0"
    data = tree.parent.data
    assert data.params["space.x"] == "choice(0, 0.5)"
    assert data.params["sampler._target_"] == "perceptrail.search.sampling.Exhaustive"
    assert data.params["directions"] == "minimize"
    best = min(t.value for t in study.trials if t.value is not None)
    assert data.metrics == {
        "trials/finished": 2,
        "trials/pruned": 2,
        "trials/failed": 2,
        "best/value": best,
    }
    assert data.tags["best.trial"] == str(study.best_trial.number)
    assert {"trials.csv", "best.yaml", "figures", "config"} <= tree.files()
    assert {"study.html", "optimization_history.png", "param_importances.png"} <= tree.files(
        "figures"
    )


def test_no_store_no_mlflow(tmp_path: Path) -> None:
    script = tmp_path / "loaded.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from search_app.lab import search\n"
        "search(Path(sys.argv[1]), 'x=interval(0, 1)', 'hydra.sweeper.n_trials=2')\n"
        "assert not {'mlflow', 'torch', 'plotly', 'matplotlib'} & set(sys.modules)\n"
        "import psutil; assert not psutil.Process().children()\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, check=True)


@pytest.mark.slow
def test_killed_again_and_again_three_stores_agree(tmp_path: Path) -> None:
    given = (*SPACE, tracked(tmp_path), "hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=2")
    chance, folder = random.Random(0), tmp_path / "sweep"
    for _ in range(4):
        process = subprocess.Popen(command(folder, *given, "nap=0.5"), start_new_session=True)
        try:
            process.wait(timeout=4 + 6 * chance.random())
        except subprocess.TimeoutExpired:
            below = psutil.Process(process.pid).children(recursive=True)
            victims = [process.pid, *(child.pid for child in below)]
            os.kill(chance.choice(victims), signal.SIGKILL)  # sweeper, worker or recorder
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            psutil.wait_procs(below, timeout=20)
    for _ in range(2):
        last = run(folder, *given)
        assert last.returncode == 0, last.stderr
    study, tree = opened(folder), Tree(tmp_path, "tests")
    assert sum(t.state in DONE for t in study.trials) == 12
    assert len({tuple(t.params.values()) for t in study.trials if t.state in DONE}) == 12
    assert tree.outcomes == outcomes(study)
    assert table(folder) == {t.number: t.state.name for t in study.trials}
    assert tree.parent.info.status == "FINISHED"
    assert not [r for r in tree.children if r.info.status == "RUNNING"]


@pytest.mark.slow
def test_a_real_search_and_what_it_says_to_type_next(tmp_path: Path) -> None:
    searched = run_command(
        "train.py", "-m", "hparams_search=xor", "hydra.sweeper.n_trials=3", cwd=tmp_path
    )
    tree = Tree(tmp_path, "perceptrail")
    folder = tmp_path / "searches" / "xor"
    assert tree.outcomes == outcomes(opened(folder, "xor"))
    best = tree.parent.data.tags["best.trial"]
    child = tree.children[int(best)]
    version = tree.client.get_model_version_by_alias("xor", "best")
    assert version.run_id == child.info.run_id
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    assert mlflow.pyfunc.load_model("models:/xor@best").metadata.run_id == child.info.run_id
    said = re.findall("(?:train the best again|evaluate the best): +(python .*)", searched.output)
    typed = [shlex.split(line) for line in said]
    assert [Path(words[1]).name for words in typed] == ["train.py", "evaluate.py"]
    for _, script, *arguments in typed:
        fewer = ["seed=0,1" if a.startswith("seed=") else a for a in arguments]
        run_command(Path(script).name, *fewer, cwd=tmp_path)
    runs = tree.client.search_runs([tree.parent.info.experiment_id])
    own = [r for r in runs if PARENT not in r.data.tags and "model.hidden" in r.data.params]
    assert sorted(r.data.params["seed"] for r in own) == ["0", "1"]
    assert "test/acc" in tree.client.get_run(child.info.run_id).data.metrics
