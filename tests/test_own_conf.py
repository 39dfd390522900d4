"""A project's own `conf/`, which adds to what perceptrail ships and comes before it."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import yaml
from running import ROOT, run

from perceptrail.invocation import CONF

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x)
"""
FILES = {
    "nets.py": NET,
    "conf/model/mine.yaml": """
        _target_: nets.Net
        width: 8
        weights: null
        fresh: null
        frozen: null
        """,
    "conf/flavour/plain.yaml": "taste: none",
    "conf/optimizer/adamw.yaml": """
        _target_: torch.optim.AdamW
        _partial_: true
        lr: 0.02
        weight_decay: 0.5
        """,
    "conf/experiment/mine.yaml": """
        # @package _global_
        defaults:
          - override /data: xor
          - override /model: mine
        trainer: {max_epochs: 2}
        """,
    "conf/hparams_search/mine.yaml": """
        # @package _global_
        defaults: [optuna, _self_]
        hydra: {sweeper: {study_name: mine, n_trials: 2, params: {model.width: "choice(4, 8)"}}}
        """,
}


@pytest.fixture
def project(tmp_path):
    """A folder with a network, a group, a preset, a search and an optimizer of its own."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    return tmp_path


def shown(folder, *arguments):
    """The configuration that a command would run with, by the console's command."""
    command = [sys.executable, "-m", "perceptrail", "train", "--cfg", "job", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return yaml.safe_load(ended.stdout)


def test_it_adds_and_overrides(project):
    cfg = shown(project, "experiment=mine", "+flavour=plain")
    assert cfg["model"] == {
        "_target_": "nets.Net", "width": 8, "weights": None, "fresh": None, "frozen": None,
    }  # fmt: skip
    assert cfg["flavour"] == {"taste": "none"}
    assert cfg["optimizer"]["weight_decay"] == 0.5
    assert cfg["trainer"]["max_epochs"] == 2
    shipped = yaml.safe_load((CONF / "model" / "deep.yaml").read_text())
    assert shown(project, "model=deep")["model"]["hidden"] == shipped["hidden"]


def test_what_a_project_has_as_its_defaults(project):
    """A preset, and still more a word of the command line, go before them."""
    (project / "conf" / "project").mkdir()
    (project / "conf" / "project" / "default.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /model: mine\n  - override /data: digits\n"
        "trainer: {max_epochs: 7}\nmodel: {width: 5}\nseed: 3\n"
    )
    cfg = shown(project)
    assert cfg["data"]["_target_"].endswith("digits")
    assert (cfg["model"]["width"], cfg["trainer"]["max_epochs"], cfg["seed"]) == (5, 7, 3)
    cfg = shown(project, "experiment=mine", "seed=4")
    assert cfg["data"]["_target_"].endswith("xor")
    assert (cfg["model"]["width"], cfg["trainer"]["max_epochs"], cfg["seed"]) == (5, 2, 4)
    assert shown(project, "data=moons")["data"]["_target_"].endswith("moons")


def test_trained_searched_and_evaluated_with_it(project):
    """The network is found in the current folder, wherever the script that is run lies."""
    run("train.py", "experiment=mine", "tracking=none", "hydra.run.dir=outputs/a/b", cwd=project)
    facts = json.loads((project / "outputs" / "a" / "b" / "model" / "model.json").read_text())
    assert facts["module"]["node"]["width"] == 8
    options = ("-m", "experiment=mine", "hparams_search=mine", "tracking=none")
    said = run("train.py", *options, cwd=project).output
    assert "train the best again" in said
    assert len(list(project.glob("searches/mine/*/metrics.json"))) == 2
    said = run("evaluate.py", "run=outputs/a/b", "tracking=none", cwd=project).output
    assert "test accuracy" in said


def answer(folder, *arguments):
    command = [sys.executable, "-m", "perceptrail", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_help_names_its_options_too(project):
    said = answer(project, "train", "--help").stdout
    (models,) = (line for line in said.splitlines() if line.startswith("  model: "))
    assert {"mine", "deep"} <= set(models.removeprefix("  model: ").split(", "))
    assert "perceptrail train resume=latest" in said
    assert "train.py" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "model=mien"], "did you mean 'mine'"),
        (["train", "optimizer.lrr=1"], "perceptrail train --help"),
        (["evaluate", "rnu=1"], "did you mean 'run'"),
        (["train", "optimizer=torn"], "torn.yaml"),
    ],
)
def test_one_message_for_what_is_wrong(project, arguments, message):
    (project / "conf" / "optimizer" / "torn.yaml").write_text("lr: [0.1\n")
    ended = answer(project, *arguments)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (project / "outputs").exists()


def test_the_commands_are_listed(tmp_path):
    said = answer(tmp_path, "--help").stdout
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert scripts <= {line.split()[1] for line in said.splitlines() if line}


def test_other_applications_are_left_alone(project):
    """One whose folder has a `conf/` beside it sees what it has always seen."""
    (project / "app").mkdir()
    (project / "app" / "settings").mkdir()
    (project / "app" / "settings" / "config.yaml").write_text("a: 1\n")
    (project / "conf" / "config.yaml").write_text("a: 2\n")
    (project / "app" / "app.py").write_text(
        "import hydra\n\n"
        "@hydra.main(version_base='1.3', config_path='settings', config_name='config')\n"
        "def main(cfg):\n    print(cfg.a)\n\n"
        "main()\n"
    )
    command = [sys.executable, "app/app.py"]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"


@pytest.mark.slow
def test_further_processes_are_called_as_the_first(project):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ("experiment=mine", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    command = [sys.executable, "-m", "perceptrail", "train", *options, "tracking=none"]
    subprocess.run(command, cwd=project, env=environment, timeout=300, check=True)
    (metrics,) = project.glob("outputs/*/*/metrics.json")
    assert json.loads(metrics.read_text())["step"] == 2 * 13
