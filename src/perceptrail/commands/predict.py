"""Predict with a stored run: image files, or the rows of a table.

python predict.py image=digit.png                with the latest run; any size, any colours
python predict.py image=folder run=best          a folder, with the best run
python predict.py input=new.csv output=told.csv  a table, with the columns that were trained on
"""

from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    """Predict what `cfg` names."""
    from perceptrail import evaluation

    evaluation.predict(cfg)
