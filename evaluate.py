"""A stored run on the untouched test split: `python evaluate.py --help`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from perceptrail import command


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> float:
    """Evaluate the run that `cfg` names and return its test accuracy."""
    from perceptrail import evaluation

    return evaluation.evaluate(cfg)


if __name__ == "__main__":
    command.execute(main, conf=Path(__file__).parent / "conf")
