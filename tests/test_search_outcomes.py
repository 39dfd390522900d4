"""What a search makes of what its trials report: the front, constraints, columns; read back."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig
from optuna.trial import TrialState, create_trial
from running import run as run_command
from search_app.lab import HERE, Tree, opened, search

from perceptrail.errors import UserError
from perceptrail.search import trial
from perceptrail.search.constraints import violation
from perceptrail.search.fronts import knee_first

XY = ("x=interval(0, 1)", "y=interval(0, 1)")


def n(count: int) -> str:
    return f"hydra.sweeper.n_trials={count}"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def task(cfg: DictConfig) -> tuple[float, float]:
    return cfg.x, (1 - cfg.x) ** 2 + cfg.y


def test_the_front_as_table_presets_and_knee(tmp_path: Path) -> None:
    two = "hydra.sweeper.direction=[min, min]"
    for count in (3, 15):
        study = search(tmp_path, *XY, two, n(count), task=task)
    front = {t.number: t.values for t in study.best_trials}
    assert len(front) > 2
    table = rows(tmp_path / "pareto.csv")
    assert {int(r["number"]): [float(r["value_0"]), float(r["value_1"])] for r in table} == front
    span = [[f(v[i] for v in front.values()) for i in (0, 1)] for f in (min, max)]

    def distance(values: list[float]) -> float:
        return sum(
            ((v - a) / (b - a)) ** 2 for v, a, b in zip(values, *span, strict=True)
        )  # fmt: skip

    knee = min(front, key=lambda number: distance(front[number]))
    assert int(table[0]["number"]) == knee
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith(f"# Trial {knee}, which reached")
    assert f"of {len(front)} on the Pareto front the knee" in text
    others = {int(path.stem) for path in (tmp_path / "pareto").iterdir()}
    assert others == set(front) - {knee}
    one = min(others)
    preset = ["-cd", str(tmp_path / "pareto"), "-cn", str(one), "--cfg", "job"]
    shown = subprocess.run(
        [sys.executable, str(HERE / "app.py"), *preset], capture_output=True, check=True
    )
    assert yaml.safe_load(shown.stdout)["x"] == study.trials[one].params["x"]


def test_a_front_without_a_spread() -> None:
    from optuna.study import StudyDirection

    def point(*values: float) -> Any:
        return create_trial(values=list(values))

    assert knee_first([], []) == []
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    assert knee_first([point(1, 5), point(9, 5)], directions)[0].values == [9, 5]


def test_metrics_are_columns(tmp_path: Path) -> None:
    def measured(cfg: DictConfig) -> float:
        trial(cfg).set_user_attr("size", 10 * cfg.x)
        trial(cfg).set_user_attr("note", "fine")
        return float(cfg.y)

    columns = ("number", "state", "value", "seconds", "reason")
    study = search(tmp_path, *XY, n(3), task=measured)
    table = rows(tmp_path / "trials.csv")
    assert [float(r["size"]) for r in table] == [10 * t.params["x"] for t in study.trials]
    assert {r["note"] for r in table} == {"fine"}
    assert set(table[0]) == {*columns, "x", "y", "size", "note"}


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsgaii"])
def test_what_breaks_an_outcome_constraint_is_not_best(tmp_path: Path, sampler: str) -> None:
    def measured(cfg: DictConfig) -> float:
        trial(cfg).set_user_attr("a/size", cfg.x)
        return float(cfg.x + cfg.y)

    limits = "hydra.sweeper.outcome_constraints=['a_size >= 0.5', 'max(a_size, value) <= 1.5']"
    study = search(tmp_path, *XY, limits, n(25), task=measured, sampler=sampler)
    assert all(
        t.constraints
        == {
            "a_size >= 0.5": pytest.approx(0.5 - t.params["x"]),
            "max(a_size, value) <= 1.5": pytest.approx(max(t.params["x"], t.value) - 1.5),
        }
        for t in study.trials
    )
    allowed = [t for t in study.trials if t.params["x"] >= 0.5 and t.value <= 1.5]
    best = min(allowed, key=lambda t: t.value)
    assert study.best_trial.number == best.number
    assert (tmp_path / "best.yaml").read_text().startswith(f"# Trial {best.number},")
    feasible = {int(r["number"]) for r in rows(tmp_path / "trials.csv") if r["feasible"] == "True"}
    assert feasible == {t.number for t in allowed}
    if sampler == "tpe":  # it looks where they are kept
        assert len([t for t in allowed if t.number > 10]) > 7


def test_an_outcome_that_was_not_reported_is_a_failure(tmp_path: Path) -> None:
    limits = "hydra.sweeper.outcome_constraints=['size <= 1']"
    with pytest.raises(UserError, match="'size' is not defined"):
        search(tmp_path, *XY, limits, "hydra.sweeper.max_failures=2")
    assert {t.state for t in opened(tmp_path).trials} == {TrialState.FAIL}


@pytest.mark.parametrize("text", ["size", "1 <", "a <= b <= c", "a == b"])
def test_refuses_what_is_no_constraint_on_outcomes(text: str) -> None:
    with pytest.raises(UserError, match="outcome_constraints"):
        violation(text)


@pytest.mark.slow
def test_a_real_search_with_two_objectives(tmp_path: Path) -> None:
    given = ["hparams_search=xor", "objectives=[val/acc,parameters]", "trainer.max_epochs=2"]
    given += ["hydra.sweeper.direction=[max,min]", "hydra/sweeper/pruner=none", n(6)]
    given += ["hydra.sweeper.outcome_constraints=['val_loss <= 10']", "hydra.sweeper.figures=false"]
    run_command("train.py", "-m", *given, cwd=tmp_path)
    folder, tree = tmp_path / "searches" / "xor", Tree(tmp_path, "perceptrail")
    study = opened(folder, "xor")
    table = rows(folder / "trials.csv")
    assert [float(r["parameters"]) for r in table] == [t.values[1] for t in study.trials]
    losses = [run.data.metrics["best/val/loss"] for run in tree.children]
    assert [float(r["val/loss"]) for r in table] == pytest.approx(losses)
    assert {r["feasible"] for r in table} == {"True"}
    knee = int(rows(folder / "pareto.csv")[0]["number"])
    assert tree.parent.data.tags["best.trial"] == str(knee)
    assert tree.parent.data.tags["best.why"].startswith(f"trial {knee}")
    assert "pareto.csv" in tree.files()
    kept = {path.name for path in (folder / "pareto").iterdir()}
    assert tree.files("pareto") == kept
