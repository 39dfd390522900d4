"""A search's run in MLflow, read back from a real store."""

import csv
import itertools
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import psutil
import pytest
from optuna import Study
from optuna.trial import TrialState
from running import Command
from running import run as run_command
from search_app.lab import OUTCOME, PARENT, Tree, opened, run

SPACE = ("x=interval(0, 1)", "y=range(0, 4)")
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
KILLS = int(os.environ.get("KILLS", "7"))


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


def workers(main: psutil.Process) -> list[psutil.Process]:
    try:
        below = main.children(recursive=True)
        return [p for p in below if "perceptrail.search.workers" in p.cmdline()]
    except psutil.NoSuchProcess:  # one has just gone
        return []


@pytest.mark.slow
def test_killed_again_and_again_three_stores_agree(tmp_path: Path) -> None:
    """The main process is killed, with its trial or with workers, and a worker before it."""
    given = ["hparams_search=xor", "trainer.max_epochs=1", "tracking.system_metrics=false"]
    given += ["hydra.sweeper.max_failures=null", "hydra.sweeper.figures=false"]
    chance, folder, kills = random.Random(0), tmp_path / "searches" / "xor", 0
    wrote: dict[Path, str] = {}
    for total in itertools.count(1):
        if kills >= KILLS:
            break
        victims = ("worker", "main") if total % 5 == 0 else ("main",)
        now = [f"hydra.sweeper.n_trials={total}", f"hydra.sweeper.n_jobs={len(victims)}"]
        search = Command("train.py", "-m", *given, *now, cwd=tmp_path)
        main = psutil.Process(search.process.pid)
        for victim in victims:
            while victim == "worker" and search.code is None and not workers(main):
                search.process.join(0.05)
            search.process.join(chance.uniform(0, 4))
            below = main.children(recursive=True) if search.code is None else []
            found = workers(main) if victim == "worker" else [main]
            if found and search.code is None:
                chance.choice(found).kill()
                kills += 1
        search.kill()
        psutil.wait_procs(below, timeout=20)
        there = {path: path.read_text() for path in folder.glob("*/.hydra/overrides.yaml")}
        assert wrote.items() <= there.items(), "overwritten"
        wrote = there
    for _ in range(2):
        run_command("train.py", "-m", *given, f"hydra.sweeper.n_trials={total}", cwd=tmp_path)
    study, tree = opened(folder, "xor"), Tree(tmp_path, "perceptrail")
    assert sum(t.state in DONE for t in study.trials) == total
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
