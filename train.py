"""Train one network, or with -m many: `python train.py --help`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from perceptrail import command


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | list[float]:
    """Train as `cfg` says and return the monitored value, or the objectives."""
    from perceptrail import recorder

    if cfg.tracking.uri is not None:  # its process imports MLflow while this one imports PyTorch
        recorder.connect(cfg.tracking.uri, cfg.tracking.experiment)
    from perceptrail import training

    return training.run(cfg)


if __name__ == "__main__":
    command.execute(main, conf=Path(__file__).parent / "conf")
