"""Schedules against their closed forms, PyTorch's own, their ends and their bounds."""

from functools import partial
from math import cos, exp, pi

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, SequentialLR

from perceptrail.schedules import DROPOUT_SCHEDULES, cosine, one_cycle

T = np.linspace(0, 1, 1001)


@pytest.mark.parametrize(
    ("t", "options", "factor"),
    [
        (0.0, {}, 1.0),
        (0.25, {}, (1 + cos(pi / 4)) / 2),
        (0.5, {}, 0.5),
        (1.0, {}, 0.0),
        (0.5, {"final": 0.2}, 0.6),
        (1.0, {"final": 0.2}, 0.2),
        (0.0, {"warmup": 0.2}, 0.0),
        (0.05, {"warmup": 0.2}, 0.25),
        (0.2, {"warmup": 0.2}, 1.0),
        (0.6, {"warmup": 0.2}, 0.5),
        (1.0, {"warmup": 0.2, "final": 0.1}, 0.1),
    ],
)
def test_cosine_at_chosen_points(t, options, factor):
    assert cosine(t, **options) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("t", "options", "factor"),
    [
        (0.0, {}, 0.04),
        (0.15, {}, 0.52),
        (0.3, {}, 1.0),
        (0.65, {}, 0.50005),
        (1.0, {}, 1e-4),
        (0.0, {"warmup": 0.0}, 1.0),
        (0.25, {"warmup": 0.5, "initial": 0.1}, 0.55),
        (1.0, {"warmup": 0.5, "final": 0.0}, 0.0),
    ],
)
def test_one_cycle_at_chosen_points(t, options, factor):
    assert one_cycle(t, **options) == pytest.approx(factor, abs=1e-12)


def rates(scheduler, steps):
    """The rates that a scheduler sets, step by step."""
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_one_cycle_is_pytorchs():
    steps, warmup, initial, final = 200, 0.3, 0.04, 1e-4
    peak = steps * warmup - 1  # PyTorch counts both ends of a flank as steps
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=steps + 1,
        pct_start=steps * warmup / (steps + 1),
        div_factor=1 / initial,
        final_div_factor=initial / final,
        cycle_momentum=False,
    )
    step = np.arange(steps + 1)
    t = np.interp(step, [0, peak, steps], [0, warmup, 1])
    ours = [one_cycle(x, warmup=warmup, initial=initial, final=final) for x in t]
    assert [*rates(theirs, steps), theirs.get_last_lr()[0]] == pytest.approx(ours, rel=1e-9)


def test_cosine_with_warm_up_is_pytorchs():
    steps, warm, final = 100, 20, 0.1
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    up = LambdaLR(optimizer, lambda step: step / warm)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warm, eta_min=final)
    theirs = SequentialLR(optimizer, [up, down], milestones=[warm])
    ours = [cosine(step / steps, warmup=warm / steps, final=final) for step in range(steps)]
    assert rates(theirs, steps) == pytest.approx(ours, rel=1e-9)


@pytest.mark.parametrize("schedule", [cosine, one_cycle])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("final", [0.0, 0.3, 1.0])
def test_a_learning_rate_stays_in_bounds_and_never_jumps(schedule, warmup, final):
    factor = partial(schedule, warmup=warmup, final=final)
    values = np.array([factor(t) for t in T])
    assert values.min() >= 0
    assert values.max() == pytest.approx(1, abs=1e-3)
    assert values.max() <= 1
    # The steepest flank is half a cosine over the last or first tenth: slope pi/2 · 10.
    assert np.abs(np.diff(values)).max() <= pi / 2 * 10 * (T[1] - T[0]) * 1.01
    peak = values.argmax()
    assert (np.diff(values[: peak + 1]) >= 0).all()
    assert (np.diff(values[peak:]) <= 1e-15).all()
    assert factor(1 + 1e-12) == factor(1.0)  # whatever the rounding of the last step


@pytest.mark.parametrize(
    ("name", "t", "rate"),
    [
        ("constant", 0.0, 0.5),
        ("constant", 1.0, 0.5),
        ("linear", 0.0, 0.1),
        ("linear", 0.25, 0.2),
        ("linear", 1.0, 0.5),
        ("cosine", 0.0, 0.1),
        ("cosine", 0.25, 0.3 - 0.2 * cos(pi / 4)),
        ("cosine", 0.5, 0.3),
        ("cosine", 1.0, 0.5),
        ("curriculum", 0.0, 0.1),
        ("curriculum", 0.1, 0.5 - 0.4 * exp(-1)),
        ("curriculum", 1.0, 0.5 - 0.4 * exp(-10)),
        ("early", 0.0, 0.5),
        ("early", 0.19, 0.5),
        ("early", 0.2, 0.1),
        ("early", 1.0, 0.1),
        ("late", 0.0, 0.1),
        ("late", 0.19, 0.1),
        ("late", 0.2, 0.5),
        ("late", 1.0, 0.5),
    ],
)
def test_dropout_at_chosen_points(name, t, rate):
    assert DROPOUT_SCHEDULES[name](t, 0.1, 0.5, 0.2) == pytest.approx(rate, abs=1e-12)


def test_curriculum_is_the_papers_in_terms_of_the_rate_kept():
    # Morerio et al. 2017, equation 3: kept = (1 - kept at last) exp(-gamma t) + kept at last.
    for t in T:
        kept = (1 - 0.5) * exp(-10 * t) + 0.5
        assert DROPOUT_SCHEDULES["curriculum"](t, 0.0, 0.5, 0.2) == pytest.approx(1 - kept)


@pytest.mark.parametrize("name", DROPOUT_SCHEDULES)
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 0.0), (0.3, 0.3)])
def test_a_dropout_rate_goes_one_way_between_start_and_end(name, start, end):
    rates = np.array([DROPOUT_SCHEDULES[name](t, start, end, 0.2) for t in T])
    assert rates.min() >= min(start, end) - 1e-15
    assert rates.max() <= max(start, end) + 1e-15
    steps = np.diff(rates)
    assert (steps >= -1e-15).all() or (steps <= 1e-15).all()
    if name in ("early", "late"):
        assert (steps != 0).sum() == (start != end)
    else:
        assert np.abs(steps).max() <= 10 * abs(end - start) * (T[1] - T[0]) + 1e-15
