"""Hyperparameter search: an Optuna sweeper for Hydra's multirun."""
