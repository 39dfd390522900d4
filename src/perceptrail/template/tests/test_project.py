"""The data, the network, and both trained together."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from own_data import rings
from own_model import Waves

ROOT = Path(__file__).parents[1]


def test_each_ring_has_its_radius():
    x, y = rings(300, 0.0)
    assert np.allclose(np.linalg.norm(x, axis=1), 1 + y, atol=1e-5)
    assert np.bincount(y).tolist() == [100, 100, 100]


def test_the_network_learns_from_any_batch():
    network = Waves(2, 3, width=8)
    network(torch.randn(5, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_training_tells_the_rings_apart(tmp_path):
    command = [sys.executable, "train.py", "tracking=none", f"hydra.run.dir={tmp_path / 'run'}"]
    subprocess.run(command, cwd=ROOT, check=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["best/val/acc"] > 0.95
