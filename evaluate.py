"""Evaluate a stored run on the untouched test split, once, into that same run.

python evaluate.py                               the latest run
python evaluate.py run=best                      the best run of the experiment
python evaluate.py run=<run id>                  an MLflow run id or a run directory
python evaluate.py run=multirun/DATE/TIME        all runs of a multirun: mean ± deviation
"""

import hydra
from omegaconf import DictConfig

from perceptrail import command


@hydra.main(version_base="1.3", config_path=str(command.CONF), config_name="evaluate")
def main(cfg: DictConfig) -> float:
    """Evaluate the run that `cfg` names and return its test accuracy."""
    from perceptrail import evaluation

    return evaluation.evaluate(cfg)


if __name__ == "__main__":
    command.execute(main, "evaluate", usage=__doc__)
