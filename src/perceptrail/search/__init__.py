"""Hyperparameter search: an Optuna sweeper for Hydra's multirun.

`trial(cfg)` is what an application needs to know of it.
"""

from perceptrail.search.running import RunningTrial, trial

__all__ = ["RunningTrial", "trial"]
