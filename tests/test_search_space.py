"""Drawing from spaces, against sets written out."""

import itertools
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler, QMCSampler, RandomSampler, TPESampler

from perceptrail.errors import UserError
from perceptrail.search.grammar import read_space
from perceptrail.search.sampling import suggest

PARAMS = {
    "optimizer": "choice(adam, sgd)",
    "momentum": {"values": "range(0.1, 0.9, 0.4)", "when": {"optimizer": "sgd"}},
    "nesterov": {"values": [True, False], "when": {"momentum": [0.5, 0.9]}},
    "hidden": {"each": "choice(8, 16)", "length": "range(0, 2)"},
}


def expected_points() -> list[dict[str, Any]]:
    hidden = [list(h) for n in range(3) for h in itertools.product([8, 16], repeat=n)]
    steps = [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.1}] + [
        {"optimizer": "sgd", "momentum": m, "nesterov": n}
        for m in (0.5, 0.9)
        for n in (True, False)
    ]
    return [step | {"hidden": h} for step in steps for h in hidden]


def test_points_are_the_product_under_the_conditions() -> None:
    space = read_space(PARAMS)
    points = [space.redraw(point) for point in space.points()]

    def key(point: dict[str, Any]) -> str:
        return str(sorted(point.items()))

    assert sorted(points, key=key) == sorted(expected_points(), key=key)


def test_undraw_is_the_inverse_of_redraw() -> None:
    space = read_space(PARAMS)
    for values in expected_points():
        assert space.redraw(space.undraw(values)) == values


@pytest.mark.parametrize("spec", ["range(1, 9, 4)", "range(0, 0.3, 0.1)", "tag(log, range(1, 3))"])
@pytest.mark.parametrize("sampler", [RandomSampler, TPESampler, QMCSampler, GPSampler])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_sampler_draws_from_the_same_set(spec: str, sampler: Any) -> None:
    space = read_space({"x": spec})
    whole = {space.redraw(point)["x"] for point in space.points()}
    study = optuna.create_study(sampler=sampler(seed=0))
    seen = set()
    for _ in range(25):
        trial = study.ask()
        values = space.draw(lambda name, d, t=trial: suggest(t, name, d))
        seen.add(values["x"])
        study.tell(trial, abs(values["x"] - 1))
    assert seen <= whole
    assert {min(whole), max(whole)} <= (seen if sampler is RandomSampler else whole)
    assert {"range(1, 9, 4)": {1, 5, 9}, "range(0, 0.3, 0.1)": {0.0, 0.1, 0.2, 0.3}}.get(
        spec, {1, 2, 3}
    ) == whole


def test_an_interval_has_no_points() -> None:
    with pytest.raises(UserError, match=r"x is an interval"):
        read_space({"x": "interval(0, 1)"}).points()


def test_witnesses_show_every_option_and_every_condition() -> None:
    seen = list(read_space(PARAMS).witnesses())
    assert {values["optimizer"] for _, values in seen} == {"adam", "sgd"}
    assert {values.get("nesterov") for _, values in seen} == {None, True, False}


def test_a_fixed_parent_switches_its_children() -> None:
    def lowest(name: str, distribution: BaseDistribution) -> Any:
        return next(iter(getattr(distribution, "choices", [getattr(distribution, "low", None)])))

    names = {
        value: set(read_space(PARAMS, [f"optimizer={value}"]).draw(lowest))
        for value in ("adam", "sgd")
    }
    assert names["adam"] == {"optimizer", "hidden"}
    assert names["sgd"] == {"optimizer", "hidden", "momentum"}
