"""A stored run's network in a file for other programs, which is read back and compared first."""

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from perceptrail import config, recorder, runs, tasks
from perceptrail.errors import UserError
from perceptrail.evaluation import locate
from perceptrail.network import Network, load
from perceptrail.tasks import Regression, Task

ROWS = (1, 2, 33)  # the sizes of the batches that are compared
TOLERANCE = 1e-4  # of a difference: of probabilities, or in the targets' standard deviations
FACTS = "perceptrail.json"  # the name of the facts in a file


@final
class Answering(nn.Module):
    """Raw inputs [batch, values] in; what a run's task has to say of them out, [batch, outputs].

    Of classes and labels it is the probability of each, of numbers each in its own unit.
    """

    def __init__(self, network: Network, task: Task) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name that users of the file see)
        """Answers."""
        outputs: Tensor = self.network(input)
        return self.task.said(outputs).float()


class Format(ABC):
    """A kind of file: how it is written, and how its own runtime answers."""

    suffix: ClassVar[str]

    @abstractmethod
    def write(self, module: nn.Module, x: Tensor, path: Path, facts: Mapping[str, str]) -> None:
        """Write a module that takes batches of any size, like x, with facts about it."""

    @abstractmethod
    def answer(self, path: Path, batches: list[Tensor]) -> list[Tensor]:
        """What the file says of batches."""


def _exported(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    sizes = {"input": {0: torch.export.Dim("batch")}}  # any
    return torch.export.export(module, (x,), dynamic_shapes=sizes)


@final
class Onnx(Format):
    """ONNX, as onnxruntime and many others run it: `input` [batch, values], `output`."""

    suffix = ".onnx"

    def write(self, module: nn.Module, x: Tensor, path: Path, facts: Mapping[str, str]) -> None:
        """By PyTorch's exporter; the facts are the model's metadata."""
        program: Any = torch.onnx.export(
            _exported(module, x), input_names=["input"], output_names=["output"], verbose=False
        )
        program.model.metadata_props.update(facts)
        program.save(path, external_data=False)

    def answer(self, path: Path, batches: list[Tensor]) -> list[Tensor]:
        """By onnxruntime."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        told = [session.run(["output"], {"input": x.numpy()})[0] for x in batches]
        return [torch.from_numpy(y) for y in told]


@final
class TorchScript(Format):
    """TorchScript, as libtorch runs it without Python."""

    suffix = ".pt"

    def write(self, module: nn.Module, x: Tensor, path: Path, facts: Mapping[str, str]) -> None:
        """By tracing; the facts are an extra file."""
        traced = torch.jit.trace(module, x, check_trace=False)
        torch.jit.save(traced, path, _extra_files={FACTS: json.dumps(facts)})

    def answer(self, path: Path, batches: list[Tensor]) -> list[Tensor]:
        """By what was read back."""
        module = torch.jit.load(path)
        return [module(x) for x in batches]


@final
class TorchExport(Format):
    """PyTorch's exported program, for its compilers."""

    suffix = ".pt2"

    def write(self, module: nn.Module, x: Tensor, path: Path, facts: Mapping[str, str]) -> None:
        """By `torch.export`; the facts are an extra file."""
        torch.export.save(_exported(module, x), path, extra_files={FACTS: json.dumps(facts)})

    def answer(self, path: Path, batches: list[Tensor]) -> list[Tensor]:
        """By what was read back."""
        module = torch.export.load(path).module()
        return [module(x) for x in batches]


FORMATS: Mapping[str, Format] = {
    "onnx": Onnx(),
    "torchscript": TorchScript(),
    "torch_export": TorchExport(),
}


def export(cfg: DictConfig) -> Path:
    """Write the network of the run `cfg.run` in `cfg.format`, once it answers as the network does.

    The file is `cfg.output`, else one in the run's directory, and is logged to the run. Raises
    `UserError` if there is no such run, or its network cannot be written so; no file is left then.
    """
    config.validate(cfg)
    folder, form = locate(cfg), FORMATS[cfg.format]
    network, facts = load(folder / runs.MODEL)
    module = Answering(network, tasks.read(facts)).eval()
    path = Path(cfg.output or folder / "export" / f"network{form.suffix}")
    runs.check_output(path, key="output", inputs=[folder / runs.MODEL], makes_folders=True)
    new = [part for part in path.parents if not part.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.tmp{form.suffix}")  # PyTorch minds the suffix
    try:
        difference = _write(module, form, draft, facts, key=f"format={cfg.format}")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        for part in new:
            part.rmdir()
        raise
    recorder.log_of(folder, cfg.tracking.uri).call("log_files", [str(path)], folder="export")
    print(
        f"{runs.shown(path)}: {path.stat().st_size / 2**20:.1f} MiB; answers as the network does, "
        f"to {difference:.1e}"
    )
    return path


@torch.no_grad()
def _write(
    module: Answering, form: Format, path: Path, facts: Mapping[str, Any], *, key: str
) -> float:
    """Write a file and return the largest difference of its answers, if they are near enough."""
    width, drawn = torch.Size(facts["shape"]).numel(), torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(module.network.architecture[name]) for name in ("mean", "std"))
    batches = [torch.randn(n, width, generator=drawn) * std + mean for n in ROWS]
    expected = [module(x) for x in batches]
    described = {name: json.dumps(value) for name, value in facts.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of exporters, about themselves
            form.write(module, batches[-1], path, described)
            told = form.answer(path, batches)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: needs {error.name}: pip install 'perceptrail[export]'") from error
    except Exception as error:
        line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise UserError(f"{key}: the network cannot be written so ({line})") from error
    unit = module.task.std if isinstance(module.task, Regression) else torch.ones(())
    difference = float((torch.cat(told) - torch.cat(expected)).div(unit).abs().max())
    if not difference <= TOLERANCE:
        raise UserError(f"{key}: the file answers otherwise than the network, by {difference:.1e}")
    return difference
