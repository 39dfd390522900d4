"""Evaluate a stored run on the untouched test split, once, into that same run.

python evaluate.py                               the latest run
python evaluate.py run=best                      the best run of the experiment
python evaluate.py run=<run id>                  an MLflow run id or a run directory
python evaluate.py run=multirun/DATE/TIME        all runs of a multirun: mean ± deviation
"""

from omegaconf import DictConfig


def main(cfg: DictConfig) -> float:
    """Evaluate the run that `cfg` names and return its test accuracy."""
    from perceptrail import recorder

    recorder.foresee(cfg)
    from perceptrail import evaluation

    return evaluation.evaluate(cfg)
