"""Killed, interrupted and troubled searches, each as the command that a user would type."""

import os
import pty
import random
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from optuna import Study
from optuna.trial import TrialState
from search_app.lab import command, opened, run

SPACE = ("x=interval(0, 1)", "y=range(0, 4)")
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def done(study: Study) -> list[dict[str, object]]:
    return [t.params for t in study.trials if t.state in DONE]


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)


def folders(path: Path) -> set[int]:
    return {int(f.name) for f in path.iterdir() if f.name.isdigit()}


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    given = (*SPACE, "hydra.sweeper.n_trials=12", "nap=0.25")
    chance = random.Random(1)
    for _ in range(4):
        process = subprocess.Popen(command(tmp_path, *given), start_new_session=True)
        try:
            process.wait(timeout=1 + 2 * chance.random())
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    last = run(tmp_path, *given)
    assert last.returncode == 0, last.stderr
    study = opened(tmp_path)
    assert len(done(study)) == 12
    assert all(t.state.is_finished() for t in study.trials)
    assert [t.number for t in study.trials] == list(range(len(study.trials)))
    points = [tuple(params.values()) for params in done(study)]
    assert len(set(points)) == 12  # none lost, none counted twice
    assert folders(tmp_path) <= set(range(len(study.trials)))
    whole = tmp_path / "whole"
    run(whole, *given)
    assert done(study) == done(opened(whole))
    assert run(tmp_path, *given).returncode == 0
    assert len(opened(tmp_path).trials) == len(study.trials)


def test_a_worker_that_dies_loses_nothing(tmp_path: Path) -> None:
    given = (*SPACE, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "nap=2")
    process = subprocess.Popen(command(tmp_path, *given), stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "1" / "app.log", process)
    psutil.Process(process.pid).children()[0].kill()
    assert process.wait() == 0
    study = opened(tmp_path)
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    assert ["SIGKILL" in t.user_attrs["reason"] for t in failed] == [True]
    again = [t for t in study.trials if t.user_attrs.get("rerun_of") == failed[0].number]
    assert [t.params for t in again] == [failed[0].params]
    assert len(done(study)) == 4


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_done(tmp_path: Path, n_jobs: int, stop: int) -> None:
    given = (*SPACE, "hydra.sweeper.n_trials=4", f"hydra.sweeper.n_jobs={n_jobs}", "nap=0.5")
    process = subprocess.Popen(command(tmp_path, *given), stdout=subprocess.PIPE)
    wait_for(tmp_path / "2" / "app.log", process)
    below = psutil.Process(process.pid).children()
    process.send_signal(stop)
    shown, _ = process.communicate()
    assert process.returncode == 130
    assert b"Interrupted" in shown
    assert not any(child.is_running() for child in below)
    study = opened(tmp_path)
    kept = done(study)
    assert kept
    assert all(t.state.is_finished() for t in study.trials)
    assert run(tmp_path, *given).returncode == 0
    assert done(opened(tmp_path))[: len(kept)] == kept
    assert len(done(opened(tmp_path))) == 4


def test_an_interrupt_ends_what_a_launcher_runs(tmp_path: Path) -> None:
    given = (*SPACE, "hydra/launcher=joblib", "hydra.sweeper.n_jobs=2", "nap=600")
    process = subprocess.Popen(command(tmp_path, *given), stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "1" / "app.log", process)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 130
    assert not psutil.wait_procs(below, timeout=20)[1]
    assert {t.state for t in opened(tmp_path).trials} == {TrialState.FAIL}


def test_a_terminal_has_a_live_line(tmp_path: Path) -> None:
    given = (*SPACE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "nap=0.5")
    watched, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    process = subprocess.Popen(
        command(tmp_path, *given), stdout=subprocess.DEVNULL, stderr=terminal
    )
    os.close(terminal)
    shown = ""
    with suppress(OSError):  # which says that the other end is closed
        while text := os.read(watched, 65536).decode(errors="replace"):
            shown += text
    os.close(watched)
    assert process.wait() == 0
    best = opened(tmp_path).best_trial
    assert "0/3 [" in shown
    assert f"best {best.value:.5g} (trial {best.number})" in shown


ALL_AT_ONCE = ("hydra/launcher=joblib", "hydra.sweeper.n_jobs=3")  # more than may fail


@pytest.mark.parametrize("jobs", [(), ("hydra.sweeper.n_jobs=2",), ALL_AT_ONCE])
def test_trouble_in_every_trial_ends_with_one_message(tmp_path: Path, jobs: Sequence[str]) -> None:
    ended = run(tmp_path, *SPACE, "trouble=diverge", "hydra.sweeper.max_failures=2", *jobs)
    assert ended.returncode == 1
    lines = ended.stderr.strip().splitlines()
    assert lines[0].startswith("2 trials in a row have failed")
    assert "Traceback" not in ended.stderr


def test_a_setting_in_error_is_one_message(tmp_path: Path) -> None:
    ended = run(tmp_path / "none", "x=interval(1, 0)")
    assert ended.returncode == 1
    assert ended.stderr.startswith("search space: x=interval(1, 0): 1.0 to 0.0 is empty")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_official_plugin_is_told_apart(tmp_path: Path, order: str) -> None:
    package = tmp_path / "site" / "hydra_plugins" / "hydra_optuna_sweeper"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "config.py").write_text(
        "from hydra.core.config_store import ConfigStore\n"
        "ConfigStore.instance().store(group='hydra/sweeper', name='optuna', node={'n_trials': 1})\n"
    )
    ours = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    theirs = [str(tmp_path / "site")]
    paths = ours + theirs if order == "after" else theirs + ours
    ended = subprocess.run(
        command(tmp_path, "x=interval(0, 1)"),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "pip uninstall hydra-optuna-sweeper" in ended.stderr


def test_a_line_that_a_power_cut_has_torn_costs_that_line_alone(tmp_path: Path) -> None:
    run(tmp_path, *SPACE, "hydra.sweeper.n_trials=3")
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    before = [t.values for t in opened(tmp_path).trials]
    for torn in (b'{"op_code":4,"wor', whole.splitlines()[-1][:-1]):
        journal.write_bytes(whole + torn)
        again = run(tmp_path, *SPACE, "hydra.sweeper.n_trials=5")
        assert again.returncode == 0, again.stderr
        found = opened(tmp_path).trials
        assert [t.values for t in found][:3] == before
        assert [t.state for t in found] == [TrialState.COMPLETE] * 5
        journal.write_bytes(whole)


def test_what_a_trial_s_runs_differ_in_stays_so(tmp_path: Path) -> None:
    space, repeats = SPACE[:1], "hydra.sweeper.repeats={key: y, values: [0, 1]}"
    assert run(tmp_path, *space, repeats, "hydra.sweeper.n_trials=2").returncode == 0
    for other in (
        "hydra.sweeper.repeats={key: y, values: [0, 1, 2]}",
        "hydra.sweeper.repeats=null",
    ):
        changed = run(tmp_path, *space, other, "hydra.sweeper.n_trials=3")
        assert changed.returncode == 1
        assert "hydra.sweeper.repeats: study 'app' was begun with y, 0, 1;" in changed.stderr
    assert run(tmp_path, *space, repeats, "hydra.sweeper.n_trials=3").returncode == 0
    assert len(opened(tmp_path).trials) == 3


def test_limits_on_outcomes_stay_so_and_judge_what_is_taken_over(tmp_path: Path) -> None:
    assert run(tmp_path / "a", *SPACE, "hydra.sweeper.n_trials=6").returncode == 0
    values = sorted(t.value or 0 for t in opened(tmp_path / "a").trials)
    limit = f"hydra.sweeper.outcome_constraints=['value >= {values[3]}']"
    changed = run(tmp_path / "a", *SPACE, limit, "hydra.sweeper.n_trials=7")
    assert changed.returncode == 1
    assert "hydra.sweeper.outcome_constraints: study 'app' was begun with none;" in changed.stderr
    taken = (limit, f"hydra.sweeper.warm_start={tmp_path / 'a'}", "hydra.sweeper.n_trials=1")
    assert run(tmp_path / "b", *SPACE, *taken).returncode == 0
    study = opened(tmp_path / "b")
    assert len(study.trials) == 7
    allowed = [t.value for t in study.trials if t.value is not None and t.value >= values[3]]
    assert study.best_value == min(allowed)


def test_a_copy_is_a_study_of_its_own_and_a_study_that_moves_is_not(tmp_path: Path) -> None:
    first, copy, moved = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    run(first, *SPACE, "hydra.sweeper.n_trials=2")
    key = opened(first).user_attrs["key"]
    copy.mkdir()
    shutil.copy(first / "study.journal", copy)
    run(copy, *SPACE, "hydra.sweeper.n_trials=3")
    assert opened(copy).user_attrs["key"] != key
    first.rename(moved)
    run(moved, *SPACE, "hydra.sweeper.n_trials=3")
    assert opened(moved).user_attrs["key"] == key
