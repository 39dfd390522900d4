"""What a start does without until it is wanted, each in a process of its own."""

import subprocess
import sys

import pytest

START = """
import sys
import torch
import perceptrail

def there():  # which of the modules that take long
    compiler = ("torch._dynamo.eval_frame", "torch._inductor.config", "triton")
    heavy = (*compiler, "scipy.signal.windows", "torchvision")
    return [name for name in heavy if name in sys.modules]

graphs = []
def backend(graph, inputs):
    graphs.append([node.name for node in graph.graph.nodes if node.op == "call_function"])
    return graph.forward
"""
TRAINED = """
import logging
logging.disable()
settings = ("experiment=smoke", "tracking=none", "figures=false", "trainer=cpu")
perceptrail.train(*settings, "hydra.run.dir=run")
assert there() == []
assert torch.are_deterministic_algorithms_enabled()
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.utilities.model_summary import ModelSummary
assert ModelSummary(BoringModel()).total_flops == 0 and there() == ["triton"]
import torch._inductor.config
assert torch._inductor.config.deterministic and "torch._dynamo.eval_frame" in there()
from torchmetrics.utilities.imports import _TORCHVISION_AVAILABLE as known
assert not known
import torchvision
assert known
"""
COMPILED = """
import perceptrail.training
from pytorch_lightning.utilities.compile import OptimizedModule

seen = []
@torch.compiler.disable
def opaque(x):
    seen.append(torch.compiler.is_compiling())
    return x + 1

layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
optimizer = torch.optim.Adam(layer.parameters())
layer(opaque(x)).sum().backward()
optimizer.step()
optimizer.zero_grad()
assert there() == [] and not isinstance(layer, OptimizedModule)

compiled = torch.compile(layer, backend=backend)
assert "torch._dynamo.eval_frame" in there()
assert isinstance(compiled, OptimizedModule) and not isinstance(layer, OptimizedModule)
assert torch.equal(compiled(x), layer(x)) and graphs == [["linear"]]

both = torch.compile(lambda x: opaque(x * 2) * 3, backend=backend)
assert both(x).tolist() == [[9, 9]]
assert graphs[1:] == [["mul"], ["mul"]] and seen == [False, False]  # cut where it may not look
"""
BELOW = """
import perceptrail.training
import torch._dynamo.config as config
assert config is torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert config is torch._dynamo.eval_frame.config  # not made twice
assert config.__spec__.origin == config.__file__
torch._dynamo.reset()
import scipy.signal.windows as windows
import scipy.signal
assert windows is scipy.signal.windows and windows.get_window is scipy.signal.get_window
assert not hasattr(scipy.signal, "hamming")
try:
    import torch._dynamo.nothing
except ModuleNotFoundError as error:
    assert error.name == "torch._dynamo.nothing"
else:
    raise AssertionError
"""
FROM = """
import perceptrail.training
from scipy.signal import butter
from scipy import signal
assert signal.butter is butter and not any("dynamo" in name for name in there())
layer = torch._dynamo.disable(torch.nn.Linear(2, 2))  # which is not left for later
from torch._dynamo import optimize
assert torch._dynamo.optimize is optimize
x = torch.ones(1, 2)
assert torch.compile(lambda x: layer(x) + 1, backend=backend)(x).shape == (1, 2)
assert graphs == [["add"]]
"""
STORED = """
import perceptrail.evaluation
assert not {"pytorch_lightning", "torchmetrics", "matplotlib"} & {*sys.modules}
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(TRAINED, id="a training has none, then torchvision"),
        pytest.param(COMPILED, id="who compiles has the compiler"),
        pytest.param(BELOW, id="modules below them"),
        pytest.param(FROM, id="names from them"),
        pytest.param(STORED, id="what is stored is asked without Lightning"),
    ],
)
def test_what_takes_long_to_import_is_there_when_it_is_wanted_and_not_before(program, tmp_path):
    command = [sys.executable, "-c", START + program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
