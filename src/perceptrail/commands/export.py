"""Write a stored run's network for other programs: ONNX, TorchScript or torch.export.

python export.py                                 the latest run as ONNX, in its directory
python export.py run=best format=torchscript     the best run, for libtorch
python export.py format=torch_export output=FILE
"""

from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    """Export the run that `cfg` names."""
    from perceptrail import recorder

    recorder.foresee(cfg)
    from perceptrail import export

    export.export(cfg)
