"""Searches that end before they have all their trials; the study and MLflow are read back."""

from pathlib import Path

import pytest
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from search_app.lab import Tree, run, search

from perceptrail.errors import UserError
from perceptrail.search import stopping
from perceptrail.search.settings import Settings

XY = ("x=interval(0, 1)", "y=range(0, 4)")
seen: list[tuple[int, TrialState]] = []


def test_no_trial_begins_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))  # which goes on by a second whenever it is looked at
    monkeypatch.setattr(stopping, "monotonic", lambda: next(clock))
    study = search(tmp_path, *XY, "hydra.sweeper.timeout=3")
    assert len(study.trials) == 2
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_a_plateau_ends_a_search_and_its_run_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    given = ("hydra.sweeper.patience=3", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    best_first = "hydra.sweeper.enqueue=[{x: 0.5, y: 2}]"
    for _ in range(2):  # and goes on no further
        ended = run(folder, *XY, *given, best_first)
        assert ended.returncode == 0, ended.stderr
        assert "Stopped: no better one in 3 trials (hydra.sweeper.patience)" in ended.stdout
    tree = Tree(tmp_path, "tests")
    assert tree.outcomes == dict.fromkeys(range(4), "COMPLETE")
    assert "no better one in 3 trials" in tree.parent.data.tags["mlflow.note.content"]
    assert tree.parent.data.params["patience"] == "3"
    assert tree.parent.info.status == "FINISHED"


def test_a_plateau_of_several_objectives_is_a_front_that_stays(tmp_path: Path) -> None:
    given = ("hydra.sweeper.direction=[min, min]", "hydra.sweeper.patience=4")
    front = "hydra.sweeper.enqueue=[{x: 0, y: 1}, {x: 0.2, y: 0}]"
    study = search(tmp_path, "x=interval(0, 1)", "y=interval(0, 4)", *given, front,
                   task=lambda cfg: (cfg.x, float(cfg.y)))  # fmt: skip
    last = max(t.number for t in study.best_trials)
    assert len(study.trials) == last + 1 + 4


def stop_at_three(study: Study, trial: FrozenTrial) -> None:
    seen.append((trial.number, trial.state))
    if trial.number == 2:
        study.stop()


@pytest.mark.parametrize(
    "callback",
    [
        f"{__name__}.stop_at_three",
        "{_target_: optuna.study.MaxTrialsCallback, n_trials: 3, states: null}",
    ],
)
def test_a_callback_hears_of_each_trial_and_may_stop(tmp_path: Path, callback: str) -> None:
    seen.clear()
    study = search(tmp_path, *XY, f"hydra.sweeper.callbacks=[{callback}]")
    assert len(study.trials) == 3
    assert seen in ([], [(i, TrialState.COMPLETE) for i in range(3)])


@pytest.mark.parametrize("given", ["no.such", 3, {"_target_": "no.such"}])
def test_refuses_what_is_no_callback(given: object) -> None:
    with pytest.raises(UserError, match=r"hydra\.sweeper\.callbacks"):
        stopping.Stopping(Settings(callbacks=[given]))
