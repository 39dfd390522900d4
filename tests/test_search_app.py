"""An application of one's own, which knows of the search `perceptrail.search.trial` alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig
from optuna import TrialPruned
from optuna.trial import TrialState
from search_app.lab import opened, search

from perceptrail.errors import UserError
from perceptrail.search import trial
from perceptrail.search.roll import BOOKKEEPING

ROOT = Path(__file__).parents[1]
APP = ROOT / "examples" / "own_app.py"
ABSENT = "torch", "pytorch_lightning", "mlflow", "sklearn"
XY = ("x=interval(0, 1)", "y=range(0, 4)")


def test_outside_a_search_it_does_nothing(tmp_path: Path) -> None:
    own = trial()
    own.report(1.0, 0)
    own.set_user_attr("key", 1)
    assert own.number is None
    assert not own.judge(float("inf"), 1)
    for arguments in ([], ["-m", "+rate=0.1,0.2"]):
        run = [sys.executable, str(APP), *arguments, f"hydra.run.dir={tmp_path}"]
        subprocess.run([*run, f"hydra.sweep.dir={tmp_path}"], cwd=tmp_path, check=True)
    assert not list(tmp_path.rglob("*.journal"))


def test_reports_are_stored_and_pruned_by(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> float:
        own = trial()  # of the job that runs, although the configuration may say it too
        own.set_user_attr("seen", own.number)
        for step in range(3):
            own.report(cfg.x - step, step)
        return float(cfg.x)

    pruner = ("hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=1")
    study = search(tmp_path, *XY, *pruner, "hydra.sweeper.n_trials=6", task=task)
    assert [t.user_attrs["seen"] for t in study.trials] == list(range(6))
    for t in study.trials:
        steps = [t.params["x"] - step for step in range(3)]
        pruned = t.state == TrialState.PRUNED
        assert list(t.intermediate_values.values()) == steps[: 2 if pruned else 3]
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_name_that_the_search_keeps_itself_is_refused(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> float:
        for name in BOOKKEEPING:
            with pytest.raises(UserError, match=f"set_user_attr.'{name}'.: must be none of"):
                trial(cfg).set_user_attr(name, 1)
        return float(cfg.x)

    study = search(tmp_path, *XY, "hydra.sweeper.n_trials=2", task=task)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2


def test_the_best_of_an_application_without_a_configuration_runs_again(tmp_path: Path) -> None:
    given = ["-m", "hydra/sweeper=optuna", "+rate=interval(0.01, 2.5)", "hydra.sweep.dir=found"]
    more = ["hydra.sweeper.n_trials=2", "hydra.sweeper.figures=false"]
    subprocess.run([sys.executable, str(APP), *given, *more], cwd=tmp_path, check=True)
    again = [sys.executable, str(APP), "-cd", "found", "-cn", "best"]
    subprocess.run(again, cwd=tmp_path, check=True)


def test_several_objectives_are_not_reported(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> tuple[float, float]:
        trial(cfg).report(1.0, 0)
        return cfg.x, cfg.y

    study = search(tmp_path, *XY, "hydra.sweeper.direction=[min, max]", "hydra.sweeper.n_trials=2",
                   task=task)  # fmt: skip
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2
    assert not study.trials[0].intermediate_values


def test_a_report_is_an_exception_that_ends_the_run() -> None:
    class Hopeless(type(trial())):  # type: ignore[misc]
        def judge(self, value: float, step: int) -> bool:
            """It is."""
            return True

    with pytest.raises(TrialPruned, match="step 3"):
        Hopeless(None).report(1.0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("way", [[], ["hydra.sweeper.n_jobs=2"]])
def test_the_search_alone_can_be_installed(alone: Path, tmp_path: Path, way: list[str]) -> None:
    given = ["hydra/sweeper=optuna", "hydra/sweeper/pruner=median", "+rate=interval(0.01, 2.5)"]
    given += ["hydra.sweeper.n_trials=15", f"hydra.sweep.dir={tmp_path}", *way]
    command = [str(alone / "bin" / "python"), str(APP), "-m", *given]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    study = opened(tmp_path, "own_app")
    states = {t.state for t in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED]
    assert any(len(t.intermediate_values) < 20 for t in pruned)  # one may be so at its last step
    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert all(t.user_attrs["x"] ** 2 == t.value for t in done)
    assert (tmp_path / "figures" / "study.html").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which only `pip install perceptrail` was typed."""
    place = tmp_path_factory.mktemp("alone") / "venv"
    uv = [str(Path(sys.executable).with_name("uv"))]
    python = place / "bin" / "python"
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, place], check=True)
    wanted = ["--constraint", ROOT / "constraints.txt", ROOT]
    subprocess.run([*uv, "pip", "install", "-q", "--python", python, *wanted], check=True)
    look = f"from importlib.util import find_spec; print([n for n in {ABSENT} if find_spec(n)])"
    found = subprocess.run([python, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    return place
