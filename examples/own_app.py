"""A Hydra application of one's own whose trials are pruned: `pip install perceptrail` is enough.

python own_app.py -m hydra/sweeper=optuna hydra/sweeper/pruner=median '+rate=interval(0.01, 2.5)'
"""

import hydra
from omegaconf import DictConfig

from perceptrail import search


@hydra.main(version_base="1.3", config_path=None)
def main(cfg: DictConfig) -> float:
    """Gradient descent on x², which is the value to be minimised."""
    trial, x = search.trial(cfg), 1.0
    for step in range(20):
        x -= cfg.get("rate", 0.1) * x
        trial.report(x * x, step)  # ends the run here if other trials did better
    trial.set_user_attr("x", x)
    return x * x


if __name__ == "__main__":
    main()
