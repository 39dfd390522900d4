"""A stack shared out among processes: what each job leaves, and what is left of the processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hydra.experimental.callback import Callback
from launching import assert_alike, history, launch
from mlflow.tracking import MlflowClient
from running import Command
from test_fused import DIGITS, EPOCHS, SMALL

from perceptrail.callbacks import DivergenceError
from perceptrail.errors import UserError
from perceptrail.fused import ending, sharing
from perceptrail.fused.group import Group
from perceptrail.fused.orders import Orders
from perceptrail.fused.run import finish

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture
def none_left():
    """No process is left that was not there before."""
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


@pytest.fixture
def trained_here(monkeypatch):
    """How many epochs were trained in the test's own process."""
    here = []
    fit = Group.fit

    def counted(group, told):
        here.append(group)
        fit(group, told)

    monkeypatch.setattr(Group, "fit", counted)
    return here


@pytest.fixture
def ended_here(monkeypatch):
    """Where jobs are ended in the test's own process."""
    here = []

    def noted(cfg, **own):
        here.append(cfg.seed)
        return finish(cfg, **own)

    monkeypatch.setattr(ending, "finish", noted)
    return here


def test_each_job_leaves_what_it_leaves_alone(tmp_path, trained_here, none_left):
    """Several shapes, one of a single job, one of large layers; some stop early."""
    early = ("trainer.max_epochs=8", "callbacks.early_stopping.patience=1", "optimizer.lr=0.05")
    jobs = [[*SMALL, *early, f"seed={k}"] for k in range(5)]
    jobs += [[*DIGITS, EPOCHS, "model.hidden=[512]", f"seed={k}"] for k in (1, 2)]
    jobs += [[*SMALL, EPOCHS, "model.hidden=[5]"]]
    assert_alike(jobs, tmp_path)
    assert not trained_here
    assert len({len(history(tmp_path / "fused" / str(k))) for k in range(5)}) > 1


def test_a_member_that_diverges_fails_alone(tmp_path):
    jobs = [[*SMALL, EPOCHS, "optimizer=sgd", f"optimizer.lr={lr}"] for lr in (0.01, 1e30, 0.02)]
    good, bad, other = launch("fused", jobs, tmp_path)
    assert good.return_value > 0 and other.return_value > 0
    with pytest.raises(DivergenceError, match="became nan"):
        _ = bad.return_value


def test_a_process_that_dies_is_told_of(tmp_path, monkeypatch, none_left):
    monkeypatch.setattr(Group, "fit", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"trained \d networks died \(exit code -9\)"):
        launch("fused", [[*SMALL, EPOCHS, f"seed={k}"] for k in range(4)], tmp_path)


def test_results_depend_on_the_number_of_processes_alone(tmp_path):
    """Not on the threads; and not even on it without random numbers in the network."""
    returned = {}
    for threads, processes in ((1, 2), (2, 2), (2, 1)):
        torch.set_num_threads(threads)
        jobs = [[*SMALL, EPOCHS, "model.dropout=0.3", f"seed={k}"] for k in range(4)]
        folder = tmp_path / f"{threads}-{processes}"
        done = launch("fused", jobs, folder, processes=processes)
        returned[threads, processes] = [job.return_value for job in done]
    assert returned[1, 2] == returned[2, 2]
    assert returned[2, 2] != returned[2, 1]


def test_a_job_by_itself_is_trained_and_ended_here(tmp_path, trained_here, ended_here):
    launch("fused", [[*SMALL, EPOCHS, "seed=7"]], tmp_path, processes=2)
    assert len(trained_here) == 1
    assert ended_here == [7]


def test_no_process_at_all_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"hydra.launcher.processes=0: must be an integer"):
        launch("fused", [[*SMALL, EPOCHS]], tmp_path, processes=0)


def test_a_mistake_found_in_a_process_is_told_as_such(tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("key=value: must be another")

    monkeypatch.setattr(Group, "fit", fail)
    with pytest.raises(UserError, match="must be another"):
        launch("fused", [[*SMALL, EPOCHS, f"seed={k}"] for k in range(4)], tmp_path)


def test_an_error_in_a_process_comes_with_its_traceback(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(Group, "fit", fail)
    with pytest.raises(RuntimeError, match=r"(?s)in fail.*ZeroDivisionError: of all things"):
        launch("fused", [[*SMALL, EPOCHS, f"seed={k}"] for k in range(4)], tmp_path)


AMID_A_FORK = """
import os, signal
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
"""

ENDLESS = """
import os, torch
from types import SimpleNamespace
from perceptrail.fused import sharing

class Endless:
    def __init__(self, members): pass
    def fit(self, told):
        print(os.getpid(), flush=True)
        while True: told(1)

torch.set_num_threads(2)
sharing.Group = Endless
member = SimpleNamespace(device=torch.device("cpu"), pruning=[])
sharing.fit([[member] * 4], lambda epochs: None, processes=None)
"""


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_first(signal_):
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            workers = [psutil.Process(int(first.stdout.readline())) for _ in range(2)]
            first.send_signal(signal_)
            assert first.wait(timeout=60) != 0
            psutil.wait_procs(workers, timeout=60)
            assert not any(worker.is_running() for worker in workers)
        finally:
            first.kill()


def test_an_interrupt_amid_a_fork_is_not_lost():
    """Python drops what is raised in its own hooks: all would go on, and for ever."""
    command = [sys.executable, "-c", AMID_A_FORK + ENDLESS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "KeyboardInterrupt" in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_what_belongs_to_a_study_stays(monkeypatch):
    class Here:
        """Notes where it trains."""

        def __init__(self, members):
            self.members = members

        def fit(self, told):
            seen.append((self.members, os.getpid()))

    seen = []
    monkeypatch.setattr(sharing, "Group", Here)
    judged = [SimpleNamespace(device=torch.device("cpu"), pruning=["a judge"]) for _ in range(2)]
    sharing.fit([judged], lambda epochs: None, processes=None)
    assert seen == [(judged, os.getpid())]


def test_orders_are_drawn_ahead():
    seeds, n, epochs = [5, 3, 8, 1, 9], 40, 8
    orders = Orders(seeds, n, epochs=epochs)
    left = [0, 1, 2, 3, 4]
    for epoch in range(epochs):
        out = np.empty((len(left), n), np.int32)
        orders.take(left, out)
        alone = [np.random.default_rng((seeds[k], epoch + 1)).permutation(n) for k in left]
        np.testing.assert_array_equal(out, alone)
        left = left[epoch % 2 :]
    orders.close()


def test_a_process_that_draws_orders_and_dies_is_told_of():
    before = set(psutil.Process().children())
    orders = Orders([1, 2], 40, epochs=50)
    (set(psutil.Process().children()) - before).pop().kill()
    out = np.empty((2, 40), np.int32)
    with pytest.raises(UserError, match="a process that shuffles has died"):
        for _ in range(50):
            orders.take([0, 1], out)
    orders.close()


def test_ends_are_printed_and_returned_in_order_whoever_makes_them(
    tmp_path, capsys, ended_here, none_left
):
    jobs = [[*SMALL, EPOCHS, f"seed={seed}"] for seed in (3, 1, 4, 1, 5)]
    jobs.insert(2, [*SMALL, EPOCHS, "optimizer=sgd", "optimizer.lr=1e30"])
    done = launch("fused", jobs, tmp_path)
    assert not ended_here
    printed = re.findall(r"run: +(\S+)", capsys.readouterr().out)
    assert [Path(folder).name for folder in printed] == ["0", "1", "3", "4", "5"]
    with pytest.raises(DivergenceError, match="became nan"):
        _ = done[2].return_value
    assert (tmp_path / "4" / "train.log").is_file()
    for place in (0, 1, 3, 4, 5):
        job, folder = done[place], tmp_path / str(place)
        assert job.return_value == min(row["val/loss"] for row in history(folder))
        assert job.cfg.seed == int(jobs[place][-1].removeprefix("seed="))
        assert job.hydra_cfg.hydra.runtime.output_dir == str(folder)
        assert list(job.overrides)[-1] == jobs[place][-1]


def test_a_store_has_heard_of_every_end(tmp_path, ended_here):
    uri = "tracking.uri='sqlite:///${hydra:sweep.dir}/mlflow.db'"
    jobs = [[*SMALL, EPOCHS, uri, "tracking.experiment=e", "figures=true"] for _ in range(4)]
    jobs += [[*jobs[0], "optimizer=sgd", "optimizer.lr=1e30"]]
    launch("fused", [[*job, f"seed={k}"] for k, job in enumerate(jobs)], tmp_path / "jobs")
    assert not ended_here
    client = MlflowClient(f"sqlite:///{tmp_path}/jobs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", *["FINISHED"] * 4]
    ids = {json.loads(p.read_text())["run_id"] for p in tmp_path.glob("jobs/*/metrics.json")}
    drawn = Path(client.download_artifacts(min(ids), "figures")).iterdir()
    assert "learning_curves.png" in {path.name for path in drawn}
    assert ids == {run.info.run_id for run in runs if run.info.status == "FINISHED"}


class Told(Callback):
    """It notes in which process it is told of an end."""

    def on_job_end(self, config, job_return, **kwargs):
        with Path("ends").open("a") as file:
            print(os.getpid(), file=file)


def test_callbacks_of_ones_own_are_told_of_every_end(tmp_path, ended_here):
    own = "+hydra.callbacks.told._target_=test_fused_sharing.Told"
    launch("fused", [[*SMALL, EPOCHS, f"seed={k}", own] for k in range(3)], tmp_path)
    assert ended_here == [0, 1, 2]
    command = Command(
        *("train.py", "-m", "hydra/launcher=fused", *SMALL, EPOCHS, "seed=0,1,2", own),
        *("tracking=none", "figures=false", "hydra.launcher.processes=2"),
        cwd=tmp_path,
    ).wait()
    assert command.code == 0, command.output
    assert (tmp_path / "ends").read_text().split() == [str(command.process.pid)] * 3


def test_a_process_that_dies_at_an_end_is_told_of(tmp_path, monkeypatch, none_left):
    def die(cfg, **own):
        if cfg.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return finish(cfg, **own)

    monkeypatch.setattr(ending, "finish", die)
    with pytest.raises(UserError, match=r"ended 2 jobs died \(exit code -9\)"):
        launch("fused", [[*SMALL, EPOCHS, f"seed={k}"] for k in range(4)], tmp_path)
    assert (tmp_path / "0" / "metrics.json").is_file()


class OddError(Exception):
    """It cannot be made anew from a pickle."""

    def __init__(self, key, value):
        super().__init__(f"{key} is {value}")


def test_any_error_of_an_end_is_returned(tmp_path, monkeypatch):
    def fail(cfg, **own):
        raise OddError("this", "odd")

    monkeypatch.setattr(ending, "finish", fail)
    for job in launch("fused", [[*SMALL, EPOCHS, f"seed={k}"] for k in range(2)], tmp_path):
        with pytest.raises(RuntimeError, match="OddError: this is odd"):
            _ = job.return_value


@pytest.mark.slow
def test_an_interruption_leaves_no_end_unrecorded(tmp_path):
    """What has left its metrics is in the store, whole, wherever Ctrl-C has come."""
    command = Command(
        *("train.py", "-m", "hydra/launcher=fused", *SMALL, EPOCHS, "seed=range(0,60)"),
        *("hydra.sweep.dir=jobs", "hydra.launcher.processes=2", "trainer=cpu"),
        cwd=tmp_path,
    )
    while len(list(tmp_path.glob("jobs/*/metrics.json"))) < 5:
        assert command.code is None, command.output
        time.sleep(0.01)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGINT)
    assert command.wait().code == 130, command.output
    finished = {
        json.loads(path.read_text())["run_id"] for path in tmp_path.glob("jobs/*/metrics.json")
    }
    assert 4 < len(finished) < 60
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {run.info.run_id for run in runs if run.info.status == "FINISHED"} == finished
    assert not [run for run in runs if run.info.status == "RUNNING"]
