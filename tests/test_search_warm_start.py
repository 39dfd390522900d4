"""Searches that begin with the trials of another study; both are read back from their journals."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from search_app.lab import search

from perceptrail.errors import UserError
from perceptrail.search.storage import open_storage

XY = ("x=interval(0, 1)", "y=range(0, 4)")
EIGHT = "hydra.sweeper.n_trials=8"


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "grid"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_takes_over_points_of_the_new_space_once(tmp_path: Path, sampler: str) -> None:
    old = search(tmp_path / "old", *XY, "hydra.sweeper.n_trials=30", "hydra.sweeper.seed=7")
    points = [t for t in old.trials if t.params["x"] <= 0.5]
    assert 9 < len(points) < 30
    narrow = ("x=interval(0, 0.5)", "y=range(0, 4)")
    narrow = ("x=range(0, 0.5, 0.5)", "y=range(0, 4)") if sampler == "grid" else narrow
    points = [t for t in points if sampler != "grid" or t.params["x"] in (0, 0.5)]
    warm = f"hydra.sweeper.warm_start={tmp_path}/old"
    for count in (3, 8):
        new = search(tmp_path / "new", *narrow, warm, f"hydra.sweeper.n_trials={count}",
                     sampler=sampler)  # fmt: skip
    copied = [t for t in new.trials if "copied" in t.user_attrs]
    assert [(t.params, t.value) for t in copied] == [(t.params, t.value) for t in points]
    assert [t.user_attrs["copied"] for t in copied] == [f"app#{t.number}" for t in points]
    own = [t for t in new.trials if "copied" not in t.user_attrs]
    assert [t.state for t in own] == [TrialState.COMPLETE] * 8
    assert [t.number for t in own] == list(range(len(copied), len(copied) + 8))
    if sampler == "grid":
        assert len({tuple(t.params.values()) for t in own}) == 8
    alone = search(tmp_path / "cold", *narrow, EIGHT, sampler=sampler)
    same = [t.params for t in alone.trials] == [t.params for t in own]
    assert same == (sampler in ("random", "grid"))  # the others have learned from them


def test_what_was_searched_may_be_fixed_now(tmp_path: Path) -> None:
    old = search(tmp_path / "old", *XY, EIGHT)
    warm = f"hydra.sweeper.warm_start={tmp_path}/old/study.journal:app"
    best = search(tmp_path / "new", "x=interval(0, 1)", "y=2", warm, "hydra.sweeper.n_trials=1")
    copied = [t.params for t in best.trials if "copied" in t.user_attrs]
    assert copied == [{"x": t.params["x"]} for t in old.trials if t.params["y"] == 2]


def test_the_best_may_be_one_of_them(tmp_path: Path) -> None:
    start = "hydra.sweeper.enqueue=[{x: 0.5, y: 2}]"
    search(tmp_path / "old", *XY, start, "hydra.sweeper.n_trials=1")
    warm = f"hydra.sweeper.warm_start={tmp_path}/old"
    search(tmp_path / "new", *XY, warm, "hydra.sweeper.n_trials=2")
    text = (tmp_path / "new" / "best.yaml").read_text()
    assert "x: 0.5" in text
    assert "y: 2" in text


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("none", "there is no file"),
        ("{old}/study.journal:ap", "(did you mean 'app'?)"),
        ("{old}/two.journal", "a, b"),
    ],
)
def test_refuses_what_is_not_there(tmp_path: Path, given: str, named: str) -> None:
    old = tmp_path / "old"
    search(old, *XY, "hydra.sweeper.n_trials=1")
    for name in ("a", "b"):
        optuna.create_study(study_name=name, storage=open_storage(str(old / "two.journal")))
    with pytest.raises(UserError) as raised:
        search(tmp_path / "new", *XY, f"hydra.sweeper.warm_start='{given.format(old=old)}'")
    assert named in str(raised.value)


def test_refuses_another_direction(tmp_path: Path) -> None:
    search(tmp_path / "old", *XY, "hydra.sweeper.n_trials=1", "hydra.sweeper.direction=max")
    with pytest.raises(UserError, match="that study optimizes"):
        search(tmp_path / "new", *XY, f"hydra.sweeper.warm_start={tmp_path}/old")
