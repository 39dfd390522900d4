"""A Hydra application that does nothing: what is left of a search is its own cost."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=None)
def main(cfg: DictConfig) -> float:
    """The parameter itself."""
    return float(cfg.x)


if __name__ == "__main__":
    main()
