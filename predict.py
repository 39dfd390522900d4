"""Recognise digits in image files: any size, black on white or white on black.

python predict.py image=digit.png                with the latest run
python predict.py image=folder run=best          a folder, with the best run
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from perceptrail import command


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Predict the images that `cfg` names and print a line for each."""
    from perceptrail import evaluation

    evaluation.predict(cfg)


if __name__ == "__main__":
    command.execute(main, "predict", conf=Path(__file__).parent / "conf", usage=__doc__)
