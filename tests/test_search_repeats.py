"""Points judged by several runs: means, races, what is kept of a trial that was lost, records."""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from mlflow.tracking import MlflowClient
from omegaconf import DictConfig
from optuna import TrialPruned
from optuna.trial import TrialState
from running import run as run_command
from scipy.stats import wilcoxon
from search_app.lab import Tree, opened, run, search

from perceptrail.errors import UserError
from perceptrail.search import trial as running_trial
from perceptrail.search.repeats import Repeats

NOISE = (0.3, -0.2, 0.1, 0.0, -0.4, 0.25)


def repeats(count: int, *, p_value: float | None = None) -> str:
    p = "null" if p_value is None else p_value
    return f"hydra.sweeper.repeats={{key: y, values: {list(range(count))}, p_value: {p}}}"


def noisy(cfg: DictConfig) -> float:
    return float(cfg.x + NOISE[cfg.y])


def test_a_points_value_is_the_mean_of_its_runs(tmp_path: Path) -> None:
    study = search(tmp_path, "x=choice(0, 1, 2)", repeats(4), task=noisy, sampler="grid")
    assert [t.values for t in study.trials] == [
        [pytest.approx(fmean(x + noise for noise in NOISE[:4]))] for x in (0, 1, 2)
    ]
    for number, trial in enumerate(study.trials):
        runs = [number + noise for noise in NOISE[:4]]
        assert [trial.user_attrs[f"y={y}"] for y in range(4)] == runs
        assert trial.user_attrs["sd"] == pytest.approx(stdev(runs))
        assert trial.user_attrs["repeats"] == 4
        assert trial.intermediate_values == dict(enumerate(runs))
        assert {path.name for path in (tmp_path / str(number)).iterdir()} == set("0123")
    header, first, *_ = (tmp_path / "trials.csv").read_text().splitlines()
    assert header.endswith("x,y=0,y=1,y=2,y=3,sd,repeats")
    assert first.startswith("0,COMPLETE,")
    assert "y:" not in (tmp_path / "best.yaml").read_text()


def test_several_objectives_have_a_mean_each(tmp_path: Path) -> None:
    given = ("x=choice(1, 2)", "hydra.sweeper.direction=[minimize, maximize]", repeats(2))
    study = search(
        tmp_path, *given, task=lambda cfg: (cfg.x + cfg.y, cfg.x * cfg.y), sampler="grid"
    )
    assert [t.values for t in study.trials] == [[1.5, 0.5], [2.5, 1.0]]
    assert study.trials[1].user_attrs["y=1"] == [3, 2]
    assert study.trials[1].user_attrs["sd value_1"] == pytest.approx(stdev([0, 2]))


def test_a_point_that_is_clearly_worse_is_given_up(tmp_path: Path) -> None:
    """As SciPy's own test has it, at 0.1; the one that may still turn out better is finished."""
    points = {"0": 0.0, "1": 0.05, "2": 0.5}  # the second is better on some
    wobble = (0, -0.3, 0.2, -0.2, 0.1, -0.35)

    def task(cfg: DictConfig) -> float:
        return float(points[str(cfg.x)] + NOISE[cfg.y] + (wobble[cfg.y] if cfg.x == 1 else 0))

    given = ("x=choice(0, 1, 2)", repeats(6, p_value=0.1))
    study = search(tmp_path, *given, task=task, sampler="grid")
    best, even, worse = study.trials
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert len(even.intermediate_values) == 6
    count = len(worse.intermediate_values)

    def p(runs: int) -> float:
        rival = even if even.values[0] < best.values[0] else best
        gaps = [worse.intermediate_values[i] - rival.intermediate_values[i] for i in range(runs)]
        return float(wilcoxon(gaps, alternative="greater", zero_method="zsplit").pvalue)

    assert p(count) < 0.1 <= p(count - 1)
    assert not (tmp_path / "2" / str(count)).exists()
    assert opened(tmp_path).trials[2].user_attrs["repeats"] == count


def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    given = ("x=interval(0, 1)", "hydra.sweeper.n_trials=4", repeats(3))
    sampled = "hydra/sweeper/sampler=random"
    assert run(tmp_path, *given, sampled, "hydra.sweeper.n_jobs=2").returncode == 0
    alone = search(tmp_path / "alone", *given)
    together = opened(tmp_path)
    assert [t.values for t in together.trials] == [t.values for t in alone.trials]
    assert all(
        t.intermediate_values == u.intermediate_values
        for t, u in zip(together.trials, alone.trials, strict=True)
    )


def test_what_a_lost_trial_had_finished_is_not_run_again(tmp_path: Path) -> None:
    ran: list[int] = []

    def task(cfg: DictConfig) -> float:
        ran.append(cfg.y)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return noisy(cfg)

    given = ("x=interval(0, 1)", "hydra.sweeper.n_trials=1", repeats(4))
    with pytest.raises(SystemExit):
        search(tmp_path, *given, task=task)
    study = search(tmp_path, *given, task=task)
    assert ran == [0, 1, 2, 2, 3]
    lost, again = study.trials
    assert (lost.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    x = again.params["x"]
    assert again.values == [pytest.approx(fmean(x + noise for noise in NOISE[:4]))]


def test_one_failed_run_fails_its_trial_and_ends_it(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> float:
        if cfg.y == 1:
            raise RuntimeError("no luck") if cfg.x else TrialPruned("enough")
        return noisy(cfg)

    study = search(tmp_path, "x=choice(0, 1)", repeats(3), task=task, sampler="grid")
    assert [t.state.name for t in study.trials] == ["PRUNED", "FAIL"]
    assert study.trials[1].user_attrs["reason"] == "y=1: RuntimeError: no luck"
    assert not (tmp_path / "1" / "2").exists()


def test_steps_of_single_runs_prune_nothing_and_their_facts_are_kept(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> float:
        trial = running_trial(None)  # as an application without a key `trial` finds it
        trial.report(100.0 if cfg.x else 0.0, step=1)
        trial.set_user_attr("parameters", 7)
        assert HydraConfig.get().job.num == 2 * (trial.number or 0) + cfg.y
        return noisy(cfg)

    pruner = ("hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=0")
    study = search(tmp_path, "x=choice(0, 1)", *pruner, repeats(2), task=task, sampler="grid")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2
    assert [t.user_attrs["parameters"] for t in study.trials] == [7, 7]
    assert [sorted(t.intermediate_values) for t in study.trials] == [[0, 1]] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "must be null, or {key: seed, values: [0, 1, 2]}"),
        ({"key": "y", "value": [0, 1]}, "value: no such key (did you mean 'values'"),
        ({"values": [0, 1]}, "key=None: must be a key"),
        ({"key": "y", "values": [0]}, "values=[0]: must be a list of at least two"),
        ({"key": "y", "values": [0, 0]}, "there twice"),
        ({"key": "y", "values": [0, 1], "p_value": 2}, "p_value=2: must be between 0 and 1"),
    ],
)
def test_bad_repeats_are_refused(given: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        Repeats.of(given)
    assert said in str(error.value)
    assert "hydra.sweeper.repeats" in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{key: x, values: [0, 1]}", "that key is searched"),
        ("{key: nothing, values: [0, 1]}", "nothing"),
    ],
)
def test_a_key_that_cannot_differ_is_refused(tmp_path: Path, given: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        search(tmp_path, "x=choice(0, 1)", f"hydra.sweeper.repeats={given}")
    assert said in str(error.value)
    assert not (tmp_path / "study.journal").exists() or not opened(tmp_path).trials


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_seeds_are_runs_below_their_trial(tmp_path: Path, launcher: str) -> None:
    """With the fused launcher they are one stack, with the others one run after the other."""
    given = ("hparams_search=xor", "hydra.sweeper.n_trials=2", "trainer.max_epochs=2")
    given = (*given, "hydra.sweeper.repeats={key: seed, values: [0, 1, 2], p_value: null}")
    launched = () if launcher == "basic" else ("hydra/launcher=fused", "hydra.sweeper.n_jobs=2")
    given = (*given, *launched, "hydra.sweeper.figures=false")
    said = run_command("train.py", "-m", *given, cwd=tmp_path).output
    assert "Alone" not in said
    assert ("Launching 6 jobs" in said) == (launcher == "fused")
    folder = tmp_path / "searches" / "xor"
    study, tree = opened(folder, "xor"), Tree(tmp_path, "perceptrail")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert tree.outcomes == {0: "COMPLETE", 1: "COMPLETE"}
    for trial, own in zip(study.trials, tree.children, strict=True):
        runs = tree.below[own.info.run_id]
        assert sorted(r.data.params["seed"] for r in runs) == ["0", "1", "2"]
        assert {r.info.status for r in [own, *runs]} == {"FINISHED"}
        place = folder / str(trial.number)
        told = [json.loads((place / str(i) / "metrics.json").read_text()) for i in range(3)]
        values = [record["best/val/loss"] for record in told]
        assert trial.values == [pytest.approx(fmean(values), rel=1e-6)]
        data = client.get_run(own.info.run_id).data
        assert data.metrics["mean/val/loss"] == pytest.approx(fmean(values), rel=1e-6)
        assert data.metrics["sd"] == pytest.approx(stdev(values), rel=1e-6)
        assert data.metrics["repeats"] == 3
