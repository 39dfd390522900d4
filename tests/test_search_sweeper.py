"""Whole searches in this process; the finished study is read back."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from optuna import Study
from optuna.trial import TrialState
from search_app.lab import HERE, bowl, search

from perceptrail.errors import UserError

XY = ("x=interval(0, 1)", "y=range(0, 4)")
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def n(count: int) -> str:
    return f"hydra.sweeper.n_trials={count}"


def states(study: Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


# The space, read back from the finished study


def test_groups_lists_and_conditions(tmp_path: Path) -> None:
    seen: dict[int, DictConfig] = {}

    def task(cfg: DictConfig) -> float:
        seen[cfg.trial.number] = cfg
        return bowl(cfg)

    space = (
        "+hydra.sweeper.params={optimizer: 'choice(adam, sgd)',"
        "optimizer.momentum: {values: 'interval(0.5, 0.9)', when: {optimizer: sgd}},"
        "model.hidden: {each: 'choice(8, 16)', length: 'range(1, 3)'}}"
    )
    study = search(tmp_path, space, n(20), task=task)
    assert states(study) == [COMPLETE] * 20
    for trial in study.trials:
        cfg, drawn = seen[trial.number], trial.params
        assert cfg.optimizer.lr == {"adam": 0.001, "sgd": 0.1}[drawn["optimizer"]]
        assert cfg.optimizer.get("momentum") == drawn.get("optimizer.momentum")
        assert ("optimizer.momentum" in drawn) == (drawn["optimizer"] == "sgd")
        hidden = [drawn[f"model.hidden[{i}]"] for i in range(drawn["model.hidden.length"])]
        assert cfg.model.hidden == hidden
    assert {t.params["optimizer"] for t in study.trials} == {"adam", "sgd"}
    assert {t.params["model.hidden.length"] for t in study.trials} == {1, 2, 3}


def test_choices_that_are_lists(tmp_path: Path) -> None:
    study = search(tmp_path, "model.hidden=choice([1], [2, 3], [])", n(8))
    assert {t.params["model.hidden"] for t in study.trials} == {"[1]", "[2,3]", "[]"}
    for trial in study.trials:
        config = OmegaConf.load(tmp_path / str(trial.number) / ".hydra" / "config.yaml")
        assert str(list(config.model.hidden)).replace(" ", "") == trial.params["model.hidden"]


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_constraints_are_kept(tmp_path: Path, sampler: str) -> None:
    study = search(
        tmp_path,
        "x=range(0, 4)",
        "y=range(0, 4)",
        "hydra.sweeper.constraints=['x + y <= 3', 'x != y', 'sum(model.hidden) > 3']",
        n(8),
        sampler=sampler,
    )
    points = [(t.params["x"], t.params["y"]) for t in study.trials]
    assert len(points) == 8
    assert all(x + y <= 3 and x != y for x, y in points)


def test_a_constraint_may_be_a_function(tmp_path: Path) -> None:
    allowed = "hydra.sweeper.constraints=[test_search_sweeper.is_even]"
    study = search(tmp_path, "y=range(0, 9)", allowed, n(6))
    assert {t.params["y"] % 2 for t in study.trials[1:]} == {0}


def is_even(cfg: DictConfig) -> bool:
    return bool(cfg.y % 2 == 0)


def test_several_objectives(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> tuple[float, float]:
        return bowl(cfg), float(cfg.y)

    directions = "hydra.sweeper.direction=[minimize, maximize]"
    study = search(tmp_path, *XY, directions, n(12), task=task, sampler="nsgaii")
    assert [d.name for d in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert states(study) == [COMPLETE] * 12
    assert all(t.values == [pytest.approx(t.values[0]), t.params["y"]] for t in study.trials)


# Samplers, order, repetition


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "qmc", "random", "nsgaii", "nsgaiii"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_resumed_search_is_the_same_search(tmp_path: Path, sampler: str) -> None:
    given = ("x=interval(0, 1)", "y=range(0, 4)", "model=choice(shallow, deep)")
    whole = search(tmp_path / "whole", *given, n(13), sampler=sampler)
    for count in (1, 2, 7, 13, 13):
        parts = search(tmp_path / "parts", *given, n(count), sampler=sampler)
        assert len(parts.trials) == count
    assert [t.params for t in parts.trials] == [t.params for t in whole.trials]
    assert len({tuple(t.params.values()) for t in whole.trials}) > 6


def test_the_seed_matters(tmp_path: Path) -> None:
    found = [
        search(tmp_path / seed, *XY, n(3), f"hydra.sweeper.seed={seed}").trials[2].params
        for seed in ("0", "1")
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("sampler", ["grid", "brute_force"])
def test_a_finite_space_is_searched_to_its_end(tmp_path: Path, sampler: str) -> None:
    given = ("x=range(0, 1, 0.25)", "y=1,3", "hydra.sweeper.n_trials=null")
    for _ in range(2):
        study = search(tmp_path, *given, sampler=sampler)
        points = [(t.params["x"], t.params["y"]) for t in study.trials]
        assert sorted(points) == [(x / 4, y) for x in range(5) for y in (1, 3)]
    assert (points == sorted(points)) == (sampler == "grid")


def test_the_defaults_are_tried_first(tmp_path: Path) -> None:
    study = search(tmp_path, *XY, "model=choice(deep, shallow)", n(2))
    assert study.trials[0].params == {"x": 0.0, "y": 1, "model": "shallow"}


def test_enqueued_points_come_first(tmp_path: Path) -> None:
    study = search(tmp_path, *XY, n(4), "hydra.sweeper.enqueue=[{x: 0.25}, {x: 0.75, y: 3}]")
    assert [t.params for t in study.trials[:2]] == [{"x": 0.25, "y": 1}, {"x": 0.75, "y": 3}]


def test_the_direction_is_the_monitored_one(tmp_path: Path) -> None:
    study = search(tmp_path, *XY, "+monitor.mode=max", n(3))
    assert study.direction.name == "MAXIMIZE"


# Failures


def trouble(cfg: DictConfig) -> float:
    if cfg.y == 0:
        raise optuna.TrialPruned
    if cfg.y == 1:
        raise RuntimeError("no luck")
    return math.nan if cfg.y == 2 else bowl(cfg)


def test_failed_and_pruned_trials(tmp_path: Path) -> None:
    study = search(tmp_path, "y=range(0, 4)", task=trouble, sampler="grid")
    assert states(study) == [PRUNED, FAIL, FAIL, COMPLETE, COMPLETE]
    reasons = [t.user_attrs.get("reason") for t in study.trials[1:4]]
    assert reasons[0] == "RuntimeError: no luck"
    assert "nan" in reasons[1]
    assert reasons[2] is None


def test_failures_are_retried_as_configured(tmp_path: Path) -> None:
    attempts: list[float] = []

    def task(cfg: DictConfig) -> float:
        attempts.append(cfg.x)
        if len(attempts) < 3:
            raise RuntimeError("not yet")
        return bowl(cfg)

    study = search(tmp_path, *XY, n(2), "hydra.sweeper.retries=2", task=task)
    assert states(study) == [FAIL, FAIL, COMPLETE, COMPLETE]
    assert attempts[0] == attempts[1] == attempts[2] != attempts[3]


def test_a_limit_on_failures_ends_the_search(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> float:
        raise RuntimeError("never")

    with pytest.raises(UserError, match=r"3 trials in a row.*never"):
        search(tmp_path, *XY, "hydra.sweeper.max_failures=3", task=task)


# Results


def test_the_table_is_current_after_every_trial(tmp_path: Path) -> None:
    lengths = []

    def task(cfg: DictConfig) -> float:
        table = tmp_path / "trials.csv"
        lengths.append(len(rows(table)) if table.exists() else 0)
        return bowl(cfg)

    study = search(tmp_path, *XY, n(4), task=task)
    assert lengths == [0, 1, 2, 3]
    table = rows(tmp_path / "trials.csv")
    assert [float(row["value"]) for row in table] == [t.value for t in study.trials]
    assert [float(row["x"]) for row in table] == [t.params["x"] for t in study.trials]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_best_is_a_configuration_of_its_own(tmp_path: Path) -> None:
    fixed = ("+extra={a: 1}", "optimizer=sgd", "~objectives")
    study = search(tmp_path, *XY, "model=choice(shallow, deep)", *fixed, n(10))
    best = min(study.trials, key=lambda t: t.value)
    stored = yaml.safe_load((tmp_path / str(best.number) / ".hydra" / "config.yaml").read_text())
    preset = ["-cd", str(tmp_path), "-cn", "best", "--cfg", "job"]
    shown = subprocess.run(
        [sys.executable, str(HERE / "app.py"), *preset], capture_output=True, check=True
    )
    again = yaml.safe_load(shown.stdout)
    assert again == {**stored, "trial": None, "objectives": 1}


# Settings in error


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["nokey=interval(0, 1)"], "nokey"),
        (["model=choice(shallow, depe)"], "depe"),
        (["model.width=range(1, 2)"], "model.width"),
        ([*XY, "hydra.sweeper.n_trials=0"], "n_trials=0"),
        ([*XY, "hydra.sweeper.n_trials=null"], "n_trials=null"),
        ([*XY, "hydra.sweeper.n_jobs=0"], "n_jobs=0"),
        ([*XY, "hydra.sweeper.retries=-1"], "retries=-1"),
        ([*XY, "hydra.sweeper.max_failures=0"], "max_failures=0"),
        ([*XY, "hydra.sweeper.direction=up"], "direction=up"),
        ([*XY, "hydra.sweeper.direction=[min, mox]"], "did you mean 'max'"),
        ([*XY, "hydra.sweeper.storage=/proc/nothing/here"], "storage=/proc/nothing/here"),
        ([*XY, "hydra.sweeper.storage=mongo://here"], "storage=mongo://here"),
        ([*XY, "hydra.sweeper.storage=sqlite:///x.db", "hydra.sweeper.n_jobs=2"], "SQLite"),
        ([*XY, "+hydra.sweeper.sampler.sed=1"], "sampler.sed"),
        ([*XY, "hydra.sweeper.sampler._target_=os.system"], "sampler._target_=os.system"),
        ([*XY, "++hydra.sweeper.pruner.warmup=1"], "pruner.warmup"),
        ([*XY, "hydra/sweeper/pruner=percentile", "hydra.sweeper.pruner.percentile=900"], "900"),
        ([*XY, "hydra/sweeper/sampler=grid"], "x is an interval"),
        ([*XY, "hydra.sweeper.direction=[min, max]", "hydra/sweeper/pruner=median"], "pruned"),
        ([*XY, "hydra.sweeper.direction=[min, max]", "hydra/sweeper/sampler=cmaes"], "CMA-ES"),
        ([*XY, "hydra.sweeper.enqueue=[{z: 1}]"], "enqueue: z"),
        ([*XY, "hydra.sweeper.enqueue=[{x: 2}]"], "x=2 is not in 0.0 to 1.0"),
        ([*XY, "hydra.sweeper.constraints=['x <']"], "'x <' is no expression"),
        ([*XY, "hydra.sweeper.constraints=['x < z']"], "'z' is not defined"),
        ([*XY, "hydra.sweeper.constraints=['x < -1']"], "1000 points in a row"),
        ([*XY, "hydra.sweeper.constraints=[no.such.function]"], "no.such.function"),
        ([*XY, "hydra.sweeper.custom_search_space=json.nothing"], "json.nothing"),
    ],
)
def test_refuses_before_the_first_trial(tmp_path: Path, overrides: list[str], named: str) -> None:
    def task(cfg: DictConfig) -> float:
        raise AssertionError

    with pytest.raises(UserError) as raised:
        search(tmp_path, *overrides, task=task)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def test_refuses_another_space_or_direction_for_the_same_study(tmp_path: Path) -> None:
    search(tmp_path, "y=choice(1, 2)", n(1))
    with pytest.raises(UserError, match="another set of values for y"):
        search(tmp_path, "y=choice(1, 3)", n(2))
    with pytest.raises(UserError, match="was begun with"):
        search(tmp_path, "y=choice(1, 2)", "hydra.sweeper.direction=max", n(2))
