"""Schedules as pure functions of progress t, which runs from 0 (start of training) to 1 (its end).

Learning-rate schedules return the factor that the base rate is multiplied by; dropout schedules the
dropout rate itself.
"""

from collections.abc import Callable, Mapping
from math import cos, exp, pi


def _half_cosine(t: float) -> float:
    return (1 - cos(pi * t)) / 2


def constant(t: float) -> float:
    """The base rate, all the time."""
    return 1.0


def cosine(t: float, *, warmup: float = 0.0, final: float = 0.0) -> float:
    """A linear rise to 1 over the first `warmup` of training, then half a cosine down to `final`.

    Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    if t < warmup:
        return t / warmup
    return 1 - (1 - final) * _half_cosine(min(1.0, (t - warmup) / (1 - warmup)))


def one_cycle(
    t: float, *, warmup: float = 0.3, initial: float = 0.04, final: float = 1e-4
) -> float:
    """Half a cosine up from `initial` to 1 over the first `warmup`, then half a cosine to `final`.

    Smith & Topin 2018, arXiv:1708.07120, with cosine flanks.
    """
    if t < warmup:
        return initial + (1 - initial) * _half_cosine(t / warmup)
    return 1 - (1 - final) * _half_cosine(min(1.0, (t - warmup) / (1 - warmup)))


DropoutSchedule = Callable[[float, float, float, float], float]

# Each maps (progress t, start, end, cutoff) to a dropout rate.
DROPOUT_SCHEDULES: Mapping[str, DropoutSchedule] = {
    # Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting"
    "constant": lambda t, start, end, cutoff: end,
    "linear": lambda t, start, end, cutoff: start + (end - start) * t,
    "cosine": lambda t, start, end, cutoff: start + (end - start) * _half_cosine(t),
    # Morerio et al. 2017, arXiv:1703.06229, equation 3, with its recommended gamma of 10 over T
    "curriculum": lambda t, start, end, cutoff: end + (start - end) * exp(-10 * t),
    # Liu et al. 2023, arXiv:2303.01500, sections 4 and 5: dropout against underfitting only early,
    # against overfitting only late
    "early": lambda t, start, end, cutoff: end if t < cutoff else start,
    "late": lambda t, start, end, cutoff: start if t < cutoff else end,
}
