"""Many trials at a time: worker processes, launchers, and several commands on one PostgreSQL."""

import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from running import run as run_command
from search_app.lab import Tree, command, opened, run, search

from perceptrail.search.storage import open_storage

SPACE = ("x=interval(0, 1)", "y=range(0, 4)")


def folders(path: Path) -> list[int]:
    return sorted(int(f.name) for f in path.iterdir() if f.name.isdigit())


def test_workers_start_once_and_share_the_cores(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(
        "import os, hydra\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n"
        "    print(os.getpid(), os.environ['OMP_NUM_THREADS'])\n"
        "    return cfg.x\n"
        "main()\n"
    )
    given = ["hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=2", f"hydra.sweep.dir={tmp_path}"]
    subprocess.run(
        [sys.executable, str(app), "-m", "hydra/sweeper=optuna", "+x=interval(0, 1)", *given],
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
        check=True,
    )
    lines = [log.read_text().split() for log in sorted((tmp_path / "workers").iterdir())]
    assert len(lines) == 2
    assert sum(len(line) for line in lines) == 2 * 8
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [(len(set(line[::2])), set(line[1::2])) for line in lines] == [(1, {share})] * 2


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_workers_find_what_one_process_finds(tmp_path: Path, n_jobs: int) -> None:
    given = ("hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=7")
    ended = run(tmp_path, *SPACE, *given, f"hydra.sweeper.n_jobs={n_jobs}")
    assert ended.returncode == 0, ended.stderr
    alone = search(tmp_path / "alone", *SPACE, *given)
    together = opened(tmp_path)
    assert [t.params for t in together.trials] == [t.params for t in alone.trials]
    assert [t.values for t in together.trials] == [t.values for t in alone.trials]
    configs = [
        (root / "3" / ".hydra" / "config.yaml").read_text()
        for root in (tmp_path, tmp_path / "alone")
    ]
    assert yaml.safe_load(configs[0]) | {"trial": None} == yaml.safe_load(configs[1]) | {
        "trial": None
    }


def test_each_worker_has_an_accelerator_of_its_own(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(
        "import os, hydra\n"
        "from perceptrail import search\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n"
        "    trial = search.trial(cfg)\n"
        "    trial.set_user_attr('device', os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "    trial.set_user_attr('worker', os.getpid())\n"
        "    if trial.number == 4: os.kill(os.getpid(), 9)\n"  # whose successor has the same
        "    return cfg.x\n"
        "main()\n"
    )
    given = ["hydra/sweeper=optuna", "+x=range(0, 9)", f"hydra.sweep.dir={tmp_path}"]
    given += ["hydra/sweeper/sampler=grid", "hydra.sweeper.n_jobs=3"]
    subprocess.run(
        [sys.executable, str(app), "-m", *given, "hydra.sweeper.figures=false"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "3,GPU-5"},
        check=True,
    )
    attrs = [t.user_attrs for t in opened(tmp_path).trials]
    devices = {own["worker"]: own["device"] for own in attrs}
    assert all(devices[own["worker"]] == own["device"] for own in attrs)
    assert len(devices) == 4
    dead = attrs[4]["worker"]
    assert sorted(d for worker, d in devices.items() if worker != dead) == ["3", "3", "GPU-5"]


@pytest.mark.filterwarnings("ignore::UserWarning:joblib")
def test_a_launcher_gets_batches(tmp_path: Path) -> None:
    given = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweeper.n_jobs=2")
    ended = run(tmp_path, *SPACE, *given, "hydra.sweeper.n_trials=5")
    assert ended.returncode == 0, ended.stderr
    study = opened(tmp_path)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 5
    assert folders(tmp_path) == [0, 1, 2, 3, 4]
    assert ended.stdout.count("is launching") == 3


def test_no_slot_of_a_launcher_waits_for_another(tmp_path: Path) -> None:
    given = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")
    ended = run(tmp_path, *SPACE, *given, "hydra.sweeper.n_trials=5", "trouble=wait")
    assert ended.returncode == 0, ended.stderr
    study = opened(tmp_path)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 5
    began = [t.datetime_start for t in study.trials]
    assert began[3] < study.trials[0].datetime_complete  # type: ignore[operator]
    assert folders(tmp_path) == [0, 1, 2, 3, 4]
    assert ended.stdout.count("is launching") == 5


def test_a_job_that_kills_its_launchers_process_is_lost_and_runs_again(tmp_path: Path) -> None:
    given = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")
    given = (*given, "trouble=choice(none, kill)", "hydra.sweeper.max_failures=3", "x=0,1")
    ended = run(tmp_path, *given, "hydra/sweeper/sampler=grid")
    assert ended.returncode == 1
    assert "trials in a row have failed" in ended.stderr
    failed = [t for t in opened(tmp_path).trials if t.state == TrialState.FAIL]
    assert all(t.user_attrs["lost"] for t in failed)
    assert any("its launcher failed" in t.user_attrs["reason"] for t in failed)


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import subprocess, sys\n"
        "from ray.cluster_utils import Cluster\n"
        "cluster = Cluster()\n"
        "for _ in range(2):\n"
        "    cluster.add_node(num_cpus=1, object_store_memory=10**8, include_dashboard=False)\n"
        "cluster.wait_for_nodes()\n"
        "address = '+hydra.launcher.ray.init.address=' + cluster.address\n"
        "code = subprocess.call([*sys.argv[1:], address.removeprefix('+')])\n"
        "cluster.shutdown()\n"
        "sys.exit(code)\n"
    )
    given = (
        "hydra/launcher=ray",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.n_trials=6",
        "trouble=wait",
    )
    subprocess.run(
        [sys.executable, str(driver), *command(tmp_path / "sweep", *SPACE, *given)], check=True
    )
    study = opened(tmp_path / "sweep")
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 6
    nodes = [(tmp_path / "sweep" / str(i) / "node").read_text() for i in range(6)]
    assert len(set(nodes)) == 2


@pytest.mark.slow
def test_four_commands_share_a_study_on_postgresql(tmp_path: Path, postgresql: str) -> None:
    given = (f"hydra.sweeper.storage='{postgresql}'", "hydra.sweeper.n_trials=20", "nap=0.3")
    given = (*given, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    commands = []
    for machine in ("a", "b", "c", "d"):
        (tmp_path / machine).mkdir()
        process = subprocess.Popen(
            command(tmp_path / "sweep", *SPACE, *given),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(tmp_path / machine)},  # no lock there in common
        )
        commands.append(process)
    said = [c.communicate() for c in commands]
    assert [c.returncode for c in commands] == [0] * 4, said
    open_storage.cache_clear()
    storage = open_storage(postgresql)
    trials = optuna.load_study(study_name="app", storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    counts = Counter(t.state for t in trials if "withdrawn" not in t.user_attrs)
    assert counts == {TrialState.COMPLETE: 20}
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    assert len({tuple(t.params.values()) for t in done}) == 20
    assert folders(tmp_path / "sweep") == [t.number for t in done]
    assert len({t.user_attrs["owner"] for t in done}) > 1
    tree = Tree(tmp_path, "tests")  # of one parent
    assert tree.outcomes == {t.number: "COMPLETE" for t in done}
    assert tree.parent.info.status == "FINISHED"


@pytest.mark.slow
def test_a_password_stays_with_the_search(tmp_path: Path, postgresql: str) -> None:
    secret = uuid.uuid4().hex
    url = postgresql.replace("postgres:@", f"postgres:{secret}@")  # not asked for
    assert secret in url
    given = ("hparams_search=xor", "hydra.sweeper.n_trials=2", "trainer.max_epochs=1")
    typed = (f"hydra.sweeper.storage='{url}'", f"+hydra.job.env_set.ADDRESS='{url}'")
    run_command("train.py", "-m", *given, *typed, "hydra.sweeper.figures=false", cwd=tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("perceptrail").experiment_id])
    assert len(runs) == 3
    assert all("***" in r.data.tags["command"] for r in runs)
    assert not [r for r in runs if secret in str(r.to_dictionary())]
    held = [path for path in tmp_path.rglob("*") if path.is_file() and "database" not in path.parts]
    assert any(path.name == "command.txt" for path in held)
    assert not [path for path in held if secret.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_two_searches_of_two_workers_survive_kills(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """One of the two is killed as soon as another trial has ended, and started again."""
    kills = int(os.environ.get("KILLS", "4"))
    address = request.getfixturevalue(kind) if kind == "postgresql" else str(tmp_path / "j.journal")
    total = 8 + 2 * kills
    given = (*SPACE, f"hydra.sweeper.storage='{address}'", f"hydra.sweeper.n_trials={total}")
    line = command(tmp_path / "sweep", *given, "hydra.sweeper.n_jobs=2", "nap=0.3")

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def trials() -> list[optuna.trial.FrozenTrial]:
        try:
            return optuna.load_study(study_name="app", storage=open_storage(address)).trials
        except KeyError:  # it is not there yet
            return []

    def done() -> int:
        return sum(t.state == TrialState.COMPLETE for t in trials())

    searches, chance = [start(), start()], random.Random(0)
    for _ in range(kills):
        before = done()
        while done() == before:
            time.sleep(0.05)
        victim = chance.randrange(2)
        searches[victim].kill()
        searches[victim].communicate()
        searches[victim] = start()
    said = [search.communicate()[1] for search in searches]
    assert [search.returncode for search in searches] == [0, 0], said
    ended = [t for t in trials() if "withdrawn" not in t.user_attrs]
    completed = [t for t in ended if t.state == TrialState.COMPLETE]
    lost = [t for t in ended if t.state == TrialState.FAIL]
    assert len(completed) == total
    assert len(completed) + len(lost) == len(ended)
    assert 0 < len(lost) <= 2 * kills
    assert all(t.user_attrs["lost"] for t in lost)
    repeated = [t.user_attrs["rerun_of"] for t in ended if "rerun_of" in t.user_attrs]
    assert sorted(repeated) == [t.number for t in lost]  # each once
    assert len({tuple(t.params.items()) for t in completed}) == total
    if kind == "postgresql":
        storage = open_storage(address)
        storage.remove_session()
        storage.engine.dispose()
    open_storage.cache_clear()
