"""Train one multi-layer perceptron, or many (-m), and record what came out.

python train.py                                  the default: MNIST, two hidden layers
python train.py model=deep optimizer.lr=3e-3     a group and a value replaced
python train.py experiment=xor                   a preset
python train.py resume=latest                    go on after an interruption
python train.py -m seed=0,1,2                    several runs
python train.py -m hparams_search=xor            a search
python train.py --cfg job model=wide             show the configuration, run nothing
"""

from omegaconf import DictConfig


def main(cfg: DictConfig) -> float | list[float]:
    """Train as `cfg` says and return the monitored value, or the objectives."""
    from perceptrail import recorder

    if cfg.tracking.uri is not None:  # its process imports MLflow while this one imports PyTorch
        recorder.connect(cfg.tracking.uri, cfg.tracking.experiment)
    from perceptrail import training

    return training.run(cfg)
