"""Write the page that tells all results: report.html, one file, from what is stored.

python report.py                                 from results/, benchmarks/, the MLflow store
python report.py page=FILE results=FOLDER        another page, other results
python report.py tracking=none                   without the leaderboard of runs
"""

from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    """Write the page that `cfg` names."""
    from perceptrail import report

    report.write(cfg)
