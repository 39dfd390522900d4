"""Find a learning rate: a short training whose rate grows from step to step.

python lr_find.py                                for the default: MNIST, two hidden layers
python lr_find.py model=deep optimizer=sgd       for any other training
"""

from omegaconf import DictConfig


def main(cfg: DictConfig) -> float:
    """Make the test for the training that `cfg` describes, and return the rate."""
    from perceptrail import rates

    return rates.find(cfg)
