"""Predict with a stored run: image files, or the rows of a table.

python predict.py image=digit.png                with the latest run; any size, any colours
python predict.py image=folder run=best          a folder, with the best run
python predict.py input=new.csv output=told.csv  a table, with the columns that were trained on
"""

import hydra
from omegaconf import DictConfig

from perceptrail import command


@hydra.main(version_base="1.3", config_path=str(command.CONF), config_name="predict")
def main(cfg: DictConfig) -> None:
    """Predict what `cfg` names."""
    from perceptrail import evaluation

    evaluation.predict(cfg)


if __name__ == "__main__":
    command.execute(main, "predict", usage=__doc__)
