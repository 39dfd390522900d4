"""Modules of one's own: what they are given and shown, how they are stored, and what is refused."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import launch
from running import run
from safetensors.torch import load_file, save_file

from perceptrail import network as networks
from perceptrail.errors import UserError
from perceptrail.model import MLP
from perceptrail.network import load, make, prepare
from perceptrail.runs import find

FACTS = {"shape": (8, 8), "outputs": 10, "mean": 2.0, "std": 4.0}
CODE = """
import torch
from torch import nn

class Rows(nn.Module):
    def __init__(self, inputs, outputs, width=7, dropout=0.1):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(width, outputs)
    def forward(self, x):
        assert x.dim() == 2
        return self.head(self.features(x))

class Pictures(nn.Module):
    def __init__(self, shape, outputs, activation=None):
        super().__init__()
        self.convolution = nn.Conv2d(shape[0], 4, 3)
        self.activation = activation or nn.ReLU()
        self.head = nn.Linear(4, outputs)
    def forward(self, x):
        assert x.shape[1:] == (1, 8, 8)
        return self.head(self.activation(self.convolution(x)).mean((2, 3)))

def classifier(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
    def forward(self, x):
        return self.layer(x)

class Wrong(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.layer = nn.Linear(inputs, 7)
    def forward(self, x):
        return self.layer(x)

class Heard(Rows):
    seen = []
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        hook = lambda layer, given, y: self.seen.append((layer.training, len(y)))
        self.head.register_forward_hook(hook)

def nothing():
    return 3
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A folder with a user's module, which can be imported while the tests run."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "users_networks.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("users_networks.Rows", {"width": 5}),
        ("users_networks.Pictures", {"activation": {"_target_": "torch.nn.GELU"}}),
        ("users_networks.classifier", {}),
        ("perceptrail.convolutional.LeNet", {"channels": [2, 3]}),
    ],
)
def test_a_module_sees_the_data_as_it_asks_for_them_and_is_stored(code, tmp_path, target, own):
    network = make({"_target_": target, **own}, **FACTS).eval()
    x = torch.randn(5, 64)
    shown = (x - 2) / 4
    if not target.endswith("Rows"):
        shown = shown.view(5, 1, 8, 8)
    torch.testing.assert_close(network(x), network.body(shown))
    network.save(tmp_path, classes=["a"])
    loaded, facts = networks.load(tmp_path)
    assert facts == {"classes": ["a"]}
    assert torch.equal(loaded(x), network(x))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(network.body.state_dict())  # the user's own class reads the file


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("users_networks.Nothing", r"cannot be imported"),
        ("no_such_package.Net", r"cannot be imported"),
        ("users_networks.nothing", r"must make a torch.nn.Module, not a int"),
        ("users_networks.Broken", r"must take a batch and return \[batch, 10\]; given \[2, 1, 8"),
        ("users_networks.Wrong", r"of two examples it returned \[2, 7\]"),
    ],
)
def test_a_module_that_does_not_suit_is_refused_before_training(code, tmp_path, target, said):
    job = ["data=digits", "model=module", f"model._target_={target}"]
    (done,) = launch("basic", [job], tmp_path)
    with pytest.raises(UserError, match=rf"model._target_={target}: .*{said}"):
        _ = done.return_value
    assert not list(tmp_path.rglob("*.ckpt"))


def test_parts_are_frozen_and_dropout_follows_its_schedule(code, tmp_path):
    job = ["data=digits", "trainer.max_epochs=2", "data.val_size=400"]
    own = ["model=module", "model._target_=users_networks.Rows", "+model.dropout=0.2"]
    frozen = ["model.frozen=[features]"]
    done = launch(
        "basic",
        [[*job, *own, "dropout=linear"], [*job, *own, *frozen], [*job, *own, "dropout=late"]],
        tmp_path,
    )
    assert all(job.return_value > 0 for job in done)
    with (tmp_path / "0" / "history.csv").open() as file:
        rates = [float(row["dropout"]) for row in csv.DictReader(file)]
    assert 0 < rates[0] < rates[1] < 0.2
    torch.manual_seed(0)
    begun = make({"_target_": "users_networks.Rows", "dropout": 0.2}, **FACTS).body
    stored = load_file(tmp_path / "1" / "model" / "model.safetensors")
    for name, value in begun.state_dict().items():
        assert torch.equal(value, stored[name]) == name.startswith("features"), name


def mlp(**options):
    torch.manual_seed(1)
    return MLP(4, 3, hidden=[5], **options)


def test_weights_come_from_files_of_every_kind(tmp_path):
    source = mlp()
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.save(source.state_dict(), tmp_path / "b.pt")
    checkpoint = {"state_dict": {f"network.{k}": v for k, v in source.state_dict().items()}}
    torch.save(checkpoint, tmp_path / "c.ckpt")
    source.save(tmp_path / "run" / "model")
    for name in ("a.safetensors", "b.pt", "c.ckpt", "run"):
        network = MLP(4, 3, hidden=[5])
        prepare(network, weights=str(tmp_path / name), fresh=(), frozen=["layers.1"])
        for key, value in source.state_dict().items():
            assert torch.equal(network.state_dict()[key], value)
        learned = [k for k, p in network.named_parameters() if p.requires_grad]
        assert learned == ["layers.4.weight", "layers.4.bias"]
    other = MLP(4, 2, hidden=[5])
    before = other.weights[1].clone()
    prepare(other, weights=str(tmp_path / "b.pt"), fresh=["layers.4"], frozen=())
    assert torch.equal(other.weights[0], source.weights[0])
    assert torch.equal(other.weights[1], before)


def test_weights_that_two_layers_share_are_read_back(tmp_path):
    node = {"_target_": "users_modules.Rich", "outputs": 3}
    modules = [make(node, shape=[8, 8], outputs=3, mean=0.5, std=2.0) for _ in range(2)]
    x = torch.rand(4, 64)
    modules[0].eval().save(tmp_path / "model")
    expected = modules[0](x)
    read, _ = load(tmp_path / "model")
    assert torch.equal(read(x), expected)
    prepare(modules[1], weights=str(tmp_path), fresh=(), frozen=())
    assert torch.equal(modules[1].eval()(x), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "a.pt"}, r"in another shape layers.4.weight, layers.4.bias"),
        ({"weights": "b.pt"}, r"lacks layers.4.weight, layers.4.bias"),
        ({"weights": "none.pt"}, r"none.pt: cannot be read \(FileNotFoundError"),
        ({"weights": "text.pt"}, r"text.pt: cannot be read"),
        ({"fresh": ["head"]}, r"model.fresh=head: fits none of layers.1.weight"),
        ({"frozen": ["heads.*"]}, r"model.frozen=heads.\*: fits none of"),
        ({"frozen": ["*"]}, r"leaves nothing to be learned"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    state = mlp().state_dict()
    torch.save(state, "a.pt")
    torch.save({k: v for k, v in state.items() if "layers.1" in k}, "b.pt")
    Path("text.pt").write_text("no weights")
    with pytest.raises(UserError, match=said):
        prepare(MLP(4, 2, hidden=[5]), **{"weights": None, "fresh": (), "frozen": ()} | options)


def test_hooks_are_called_at_every_step(code, tmp_path):
    job = ["data=digits", "data.val_size=437", "data.batch_size=100", "trainer.max_epochs=2"]
    launch("basic", [[*job, "model=module", "model._target_=users_networks.Heard"]], tmp_path)
    from users_networks import Heard

    assert Heard.seen.count((True, 100)) == 2 * 10
    assert Heard.seen.count((False, 437)) == 2


@pytest.mark.slow
def test_a_run_of_ones_own_network_is_resumed_served_and_evaluated(code, tmp_path):
    """In a folder of one's own, recorded; MLflow's copy needs no file of that folder."""
    (tmp_path / "work").mkdir()
    work = tmp_path / "work"
    (work / "users_networks.py").write_text(CODE)
    own = ["data=digits", "model=module", "model._target_=users_networks.Pictures"]
    run("train.py", *own, "trainer.max_epochs=2", cwd=work)
    folder = find("latest", root=work)
    record = json.loads((folder / "metrics.json").read_text())
    run("evaluate.py", cwd=work)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "test/acc" in metrics
    network, _ = networks.load(folder / "model")
    x = np.random.default_rng(0).random((3, 64), dtype=np.float32)
    (work / "users_networks.py").unlink()
    program = (
        "import mlflow, numpy as np; mlflow.set_tracking_uri('sqlite:///work/mlflow.db');"
        f"m = mlflow.pyfunc.load_model('runs:/{record['run_id']}/model');"
        "x = np.random.default_rng(0).random((3, 64), dtype=np.float32);"
        "print(*m.predict(x).iloc[:, 1:].to_numpy().ravel())"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    served = np.array(told.stdout.split(), float).reshape(3, 10)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(served, expected, atol=1e-6)
