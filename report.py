"""Write the page that tells all results: report.html, one file, from what is stored.

python report.py                                 from results/, benchmarks/, the MLflow store
python report.py page=FILE results=FOLDER        another page, other results
python report.py tracking=none                   without the leaderboard of runs
"""

import hydra
from omegaconf import DictConfig

from perceptrail import command


@hydra.main(version_base="1.3", config_path=str(command.CONF), config_name="report")
def main(cfg: DictConfig) -> None:
    """Write the page that `cfg` names."""
    from perceptrail import report

    report.write(cfg)


if __name__ == "__main__":
    command.execute(main, "report", usage=__doc__)
