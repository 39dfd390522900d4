"""Applications configured for hydra-optuna-sweeper, and studies that others have begun."""

import inspect
import logging
import math
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import optuna
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from optuna import Trial
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState
from search_app.lab import bowl, opened, search

from perceptrail.errors import UserError
from perceptrail.search.engines import Outcome
from perceptrail.search.options import PRUNERS, SAMPLERS
from perceptrail.search.settings import Settings
from perceptrail.search.storage import open_storage
from perceptrail.search.sweeper import _Tally

XY = ("x=interval(0, 1)", "y=range(0, 4)")
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def n(count: int) -> str:
    return f"hydra.sweeper.n_trials={count}"


def config(folder: Path, number: int) -> Any:
    return OmegaConf.load(folder / str(number) / ".hydra" / "config.yaml")


# Failures


def faulty(cfg: DictConfig) -> float:
    if cfg.trial.number % 2:
        raise RuntimeError("odd")
    return bowl(cfg)


def test_a_share_of_failures_ends_a_search(tmp_path: Path) -> None:
    rate = "hydra.sweeper.max_failure_rate=0"
    with pytest.raises(UserError, match="1 of 1 trials have failed"):
        search(tmp_path, *XY, n(4), rate, task=faulty)
    assert [t.state for t in opened(tmp_path).trials] == [COMPLETE, FAIL]


@pytest.mark.parametrize(("rate", "ends"), [(0.4, True), (0.5, False)])
def test_the_share_is_that_of_a_batch(rate: float, ends: bool) -> None:
    tally = _Tally(Settings(max_failure_rate=rate, n_jobs=2), 4)
    for number in range(4):
        tally.add(Outcome(number, FAIL if number % 2 else COMPLETE))
        if ends and number == 1:
            with pytest.raises(UserError, match=r"1 of 2 .*max_failure_rate=0.4"):
                tally.judge(last=False)
            return
        tally.judge(last=number == 3)


def test_failures_are_bounded_in_any_case(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> float:
        raise RuntimeError("never")

    with pytest.raises(UserError, match="101 trials have failed"):
        search(tmp_path, "x=interval(0, 1)", n(1), "hydra.sweeper.max_failures=null", task=task)


@pytest.mark.parametrize(
    ("policy", "state"), [("fail", FAIL), ("prune", PRUNED), ("worst", COMPLETE)]
)
def test_what_a_nan_is(tmp_path: Path, policy: str, state: TrialState) -> None:
    def task(cfg: DictConfig) -> float:
        return math.nan if cfg.trial.number == 2 else float(cfg.trial.number)

    study = search(tmp_path, *XY, n(4), f"hydra.sweeper.nan={policy}", task=task)
    assert study.trials[2].state == state
    if state == COMPLETE:
        assert study.trials[2].value == 1.0  # the highest of the two before it


# What is searched


def extend(cfg: DictConfig, trial: Trial) -> None:
    trial.suggest_float("y", trial.params["x"], cfg.y)
    trial.suggest_float("+w", 5.0, 6.0)
    trial.suggest_categorical("optimizer", ["adam", "sgd"])


def test_a_custom_search_space(tmp_path: Path) -> None:
    name = "hydra.sweeper.custom_search_space=test_search_dropin.extend"
    study = search(tmp_path, "x=interval(0, 1)", name, n(4))
    for trial in study.trials:
        cfg = config(tmp_path, trial.number)
        assert cfg.x <= cfg.y == trial.params["y"]
        assert 5 <= cfg.w == trial.params["+w"] <= 6
        lr = {"adam": 0.001, "sgd": 0.1}[trial.params["optimizer"]]
        assert cfg.optimizer.lr == lr
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert best["w"] == study.best_params["+w"]
    with pytest.raises(UserError, match="y has a fixed value"):
        search(tmp_path / "fixed", "x=interval(0, 1)", "y=1", name, n(4))


@pytest.mark.parametrize("params", ["hydra.sweeper.params=null", "x=0.25"])
def test_nothing_to_search_runs_as_often_as_asked(tmp_path: Path, params: str) -> None:
    study = search(tmp_path, params, n(3), sampler="tpe")
    assert [t.state for t in study.trials] == [COMPLETE] * 3
    assert config(tmp_path, 2).x == (0.25 if "x" in params[:1] else config(tmp_path, 0).x)


def test_a_space_as_version_1_1_wrote_it(tmp_path: Path) -> None:
    space = (
        "hydra.sweeper.search_space={x: {type: float, low: 0, high: 1, step: 0.25}, "
        "y: {type: int, low: 1, high: 100, log: true}, "
        "optimizer: {type: categorical, choices: [adam, sgd]}}"
    )
    study = search(tmp_path, space, n(6))
    assert study.trials[1].distributions["x"] == FloatDistribution(0, 1, step=0.25)
    assert {t.params["optimizer"] for t in study.trials} == {"adam", "sgd"}
    assert all(type(t.params["y"]) is int for t in study.trials)


def test_conditions_and_lists_on_the_command_line(tmp_path: Path) -> None:
    space = (
        "hydra.sweeper.params={optimizer: 'choice(adam, sgd)', "
        "y: {values: 'interval(1, 2)', when: {optimizer: sgd}}, "
        "model.hidden: {each: 'choice(8, 16)', length: 'range(1, 2)'}}"
    )
    study = search(tmp_path, space, n(8))
    assert all(("y" in t.params) == (t.params["optimizer"] == "sgd") for t in study.trials)
    assert {t.params["model.hidden.length"] for t in study.trials} == {1, 2}


def test_a_glob_stands_for_the_options_of_a_group(tmp_path: Path) -> None:
    study = search(tmp_path, "optimizer=glob(*)", n(1))
    (options,) = study.trials[0].distributions.values()
    assert set(options.choices) == {"adam", "sgd"}  # type: ignore[attr-defined]


def test_values_are_stored_as_they_ran(tmp_path: Path) -> None:
    study = search(tmp_path, "x=range(0.5, 5.5, 0.1)", n(30))
    for trial in study.trials:
        assert trial.params["x"] == config(tmp_path, trial.number).x
        assert len(str(trial.params["x"])) == 3


# Samplers and pruners


@pytest.mark.parametrize("options", [SAMPLERS, PRUNERS])
def test_every_argument_can_be_set(options: dict[str, dict[str, Any]]) -> None:
    for name, node in options.items():
        if name == "motpe":
            continue
        accepted = set(inspect.signature(resolve_name(node["_target_"])).parameters)
        accepted -= {"consider_prior"}  # which Optuna is giving up
        assert set(node) - {"_target_"} == accepted, name


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "motpe"])
def test_a_samplers_own_seed_wins(tmp_path: Path, sampler: str) -> None:
    drawn = []
    for name, own in {"a": "sampler.seed=3", "b": "seed=3", "c": "sampler.seed=4"}.items():
        given = ("x=range(0, 200)", f"hydra.sweeper.{own}", "hydra.sweeper.enqueue=[]", n(3))
        study = search(tmp_path / name, *given, sampler=sampler)
        drawn.append([t.params["x"] for t in study.trials])
    assert drawn[0] == drawn[1]
    assert (drawn[0] == drawn[2]) == (sampler == "grid")


def test_a_replaced_sampler_has_no_settings_of_the_one_before(tmp_path: Path) -> None:
    target = "hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler"
    pruner = "hydra.sweeper.pruner._target_=optuna.pruners.NopPruner"
    given = (target, "hydra/sweeper/pruner=median", pruner)
    assert len(search(tmp_path, *XY, *given, n(2), sampler="tpe").trials) == 2


def small(trial: FrozenTrial) -> tuple[float]:
    return (trial.params["y"] - 2,)


@pytest.mark.filterwarnings("ignore:.constraints_func.:FutureWarning")
def test_arguments_may_be_functions_and_objects(tmp_path: Path) -> None:
    given = (
        "hydra.sweeper.sampler.constraints_func=test_search_dropin.small",
        "+hydra.sweeper.sampler._partial_=true",
        "hydra.sweeper.sampler.crossover={_target_: optuna.samplers.nsgaii.UniformCrossover}",
        "hydra.sweeper.sampler.population_size=2",
    )
    study = search(tmp_path, *XY, *given, n(6), sampler="nsgaii")
    assert [t.state for t in study.trials] == [COMPLETE] * 6


class Stateful(RandomSampler):
    """Counts what it is told, as samplers do that learn in memory."""

    made = 0

    def __init__(self, search_space: dict[str, BaseDistribution], seed: int | None = None) -> None:
        super().__init__(seed)
        type(self).made += 1
        self.space, self.told = search_space, 0

    def after_trial(self, *args: Any) -> None:
        """Count."""
        self.told += 1

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        """How often it was told."""
        assert name in self.space
        return float(self.told)


def test_a_sampler_that_learns_lives_as_long_as_the_search(tmp_path: Path) -> None:
    target = "hydra.sweeper.sampler._target_=test_search_dropin.Stateful"
    study = search(tmp_path, "x=interval(0, 9)", "hydra.sweeper.enqueue=[]", target, n(5))
    assert [t.params["x"] for t in study.trials] == [0, 1, 2, 3, 4]
    assert Stateful.made == 1


def test_a_sampler_may_stop_the_study(tmp_path: Path) -> None:
    target = "hydra.sweeper.sampler._target_=optuna.samplers.BruteForceSampler"
    study = search(tmp_path, "x=choice(0, 1)", "y=range(0, 2)", target, n(50))
    assert sorted((t.params["x"], t.params["y"]) for t in study.trials) == [
        (x, y) for x in (0, 1) for y in (0, 1, 2)
    ]
    assert {t.state for t in study.trials} == {COMPLETE}


# Studies


def test_without_a_name_each_study_is_new(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError):  # opened by the name `app`, which is not there
            search(tmp_path, *XY, "hydra.sweeper.study_name=null", n(2))
    open_storage.cache_clear()
    storage = open_storage(str(tmp_path / "study.journal"))
    assert [len(storage.get_all_trials(s._study_id)) for s in storage.get_all_studies()] == [2, 2]


def test_a_storage_may_be_any_object(tmp_path: Path) -> None:
    backend = "{_target_: optuna.storages.journal.JournalFileBackend, file_path: %s}"
    path = tmp_path / "other.journal"
    spec = "{_target_: optuna.storages.JournalStorage, log_storage: %s}" % (backend % path)
    with pytest.raises(KeyError):
        search(tmp_path, *XY, f"hydra.sweeper.storage={spec}", n(3))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    assert len(optuna.load_study(study_name="app", storage=storage).trials) == 3


@pytest.mark.parametrize("value", [-1.0, 9.0])
def test_trials_of_others_are_adopted(tmp_path: Path, value: float) -> None:
    storage = open_storage(str(tmp_path / "study.journal"))
    begun = optuna.create_study(study_name="app", storage=storage)
    space = {"x": FloatDistribution(0, 1)}
    begun.add_trial(optuna.create_trial(params={"x": 0.125}, distributions=space, value=value))
    study = search(tmp_path, "x=interval(0, 1)", n(3))
    assert [t.state for t in study.trials] == [COMPLETE] * 3
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert best["x"] == study.best_params["x"]
    assert (best["x"] == 0.125) == (value < 0)
    official = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert official == {
        "name": "optuna", "best_params": study.best_params, "best_value": study.best_value,
    }  # fmt: skip


def test_queued_trials_run_first(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.journal"))
    begun = optuna.create_study(study_name="app", storage=storage)
    for point in ({"x": 0.75}, {"x": 0.5, "y": 3}, {"x": 0.25, "y": "none"}):
        begun.enqueue_trial(point)
    study = search(tmp_path, *XY, n(3))
    assert [t.params.get("x") for t in study.trials[:2]] == [0.75, 0.5]
    assert study.trials[1].params["y"] == 3
    assert study.trials[2].state == FAIL  # whose value is none of the space
    assert [t.state for t in study.trials].count(COMPLETE) == 3
    assert TrialState.WAITING not in {t.state for t in study.trials}


def test_several_objectives_leave_solutions(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> tuple[float, float]:
        return float(cfg.x), float(cfg.y)

    directions = "hydra.sweeper.direction=[minimize, maximize]"
    study = search(tmp_path, *XY, directions, n(6), task=task)
    left = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    want = [{"params": t.params, "values": t.values} for t in study.best_trials]
    assert sorted(map(str, left["solutions"])) == sorted(map(str, want))


# What is said


def test_a_pruner_without_reports_is_pointed_out_once(
    tmp_path: Path,
) -> None:
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            """Keep it."""
            seen.append(record.getMessage())

    logger, handler = logging.getLogger("perceptrail.search.sweeper"), Keep()
    logger.addHandler(handler)
    search(tmp_path, *XY, "hydra/sweeper/pruner=median", n(3))
    search(tmp_path / "none", *XY, "hydra/sweeper/pruner=none", n(3))
    logger.removeHandler(handler)
    assert ["trial 0 has reported nothing" in line for line in seen] == [True]


class Rules:
    """Conditions kept together."""

    @staticmethod
    def even(cfg: DictConfig) -> bool:
        """Whether y is even."""
        return bool(cfg.y % 2 == 0)


def test_a_constraint_may_be_a_method_or_in_a_module_with_a_hyphen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-rules.py").write_text("def small(cfg):\n    return cfg.y < 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = "[test_search_dropin.Rules.even, my-rules.small, 'y - 1 < 4']"
    study = search(tmp_path, "y=range(0, 9)", f"hydra.sweeper.constraints={names}", n(6))
    assert {t.params["y"] for t in study.trials} <= {0, 2, 4}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "+hydra.sweeper.n_trails=3",
            "hydra.sweeper.n_trails: no such key (did you mean 'n_trials'",
        ),
        ("hydra/sweeper/sampler=motpe", "use sampler=tpe"),
        ("hydra.sweeper.max_failure_rate=2", "must be from 0 to 1"),
        ("hydra.sweeper.nan=wurst", "must be one of fail, prune, worst (did you mean 'worst'"),
    ],
)
def test_refusals(tmp_path: Path, given: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        search(tmp_path, *XY, given, n(2))
    assert said in str(raised.value)


SPHERE = """
import hydra
@hydra.main(version_base=None, config_path=".", config_name="sphere")
def sphere(cfg):
    return cfg.x ** 2 + cfg.y ** 2
if __name__ == "__main__":
    sphere()
"""
CONFIG = """
defaults:
  - override hydra/sweeper: optuna
  - override hydra/sweeper/sampler: tpe
hydra:
  sweeper:
    _target_: hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper
    sampler:
      seed: 123
      n_startup_trials: 4
    direction: minimize
    study_name: sphere
    storage: null
    n_trials: 6
    n_jobs: 1
    max_failure_rate: 0.0
    params:
      x: range(-5.5, 5.5, step=0.5)
      y: choice(-5, 0, 5)
x: 1
y: 1
"""


def test_a_configuration_for_the_official_plugin_runs_unchanged(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SPHERE)
    (tmp_path / "sphere.yaml").write_text(CONFIG)
    command = [
        sys.executable,
        "app.py",
        "-m",
        "hydra.sweep.dir=out",
        "+hydra.sweeper.figures=false",
    ]
    command[-1] = "hydra.sweeper.figures=false"
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    study = opened(tmp_path / "out", "sphere")
    left = yaml.safe_load((tmp_path / "out" / "optimization_results.yaml").read_text())
    assert (
        left["best_value"]
        == study.best_value
        == min(t.params["x"] ** 2 + t.params["y"] ** 2 for t in study.trials)
    )
    assert len(study.trials) == 6
