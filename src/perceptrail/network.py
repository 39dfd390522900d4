"""Any PyTorch module as a run's network: shown the data as it wants them, stored, read back."""

import inspect
import json
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from perceptrail.errors import UserError
from perceptrail.model import ARCHITECTURE, MLP, WEIGHTS, Standardise
from perceptrail.runs import read_json, shown

KEYS = ("weights", "fresh", "frozen")  # of the group `model`: what is done with any module made


class Module(nn.Module):
    """A module of one's own in the place of an `MLP`: raw rows [batch, values] in, its outputs out.

    The module sees standardised inputs, as rows if its constructor asks for their number,
    `inputs`, else in the shape of an example: [batch, channels, height, width] for images, grey
    ones having one channel. `architecture` is what makes it anew: its node of the configuration
    (`_target_` and arguments) with the facts that it has asked for, and those of the data.
    """

    def __init__(
        self,
        node: Mapping[str, Any],
        *,
        shape: Sequence[int],
        mean: float | list[float],
        std: float | list[float],
        key: str = "model",
    ) -> None:
        super().__init__()
        from hydra.utils import instantiate

        self.architecture: dict[str, Any] = {
            "node": dict(node),
            "shape": list(shape),
            "mean": mean,
            "std": std,
        }
        self.mean, self.std = mean, std
        self.standardise = Standardise(mean, std)
        self._shape = () if "inputs" in node else _as_seen(shape)
        body = instantiate(dict(node), _convert_="all")
        if not isinstance(body, nn.Module):
            raise UserError(
                f"{key}._target_={node['_target_']}: must make a torch.nn.Module, not a "
                f"{type(body).__name__}"
            )
        self.body = body
        rate = node.get("dropout")
        self.dropouts = [m for m in body.modules() if isinstance(m, _DropoutNd) and m.p == rate]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of raw inputs [batch, values]."""
        y: Tensor = self.body(self.seen(x))
        return y

    def seen(self, x: Tensor) -> Tensor:
        """Raw inputs [batch, values] as the module sees them: standardised, in its shape."""
        return self.shaped(self.standardise(x))

    def shaped(self, x: Tensor) -> Tensor:
        """Rows [batch, values] in the shape that the module sees."""
        return x.unflatten(1, self._shape) if self._shape else x

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights [fan_out, ...] without biases and the scales of norms, from the input on."""
        return [parameter for parameter in self.body.parameters() if parameter.dim() > 1]

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def set_dropout(self, rate: float) -> None:
        """Set the rate of the layers that have begun with that of the argument `dropout`."""
        for layer in self.dropouts:
            layer.p = rate

    def hold_dropout(self, device: torch.device | None) -> None:
        """Nothing: these rates are numbers, of steps that are not recorded while they move."""

    def save(self, folder: Path, **facts: Any) -> None:
        """Write weights under the module's own names, architecture and `facts` as `MLP.save`."""
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{WEIGHTS}.tmp"
        save_model(self.body, str(draft))  # which nobody else may read
        (folder / WEIGHTS).write_bytes(draft.read_bytes())
        draft.unlink()
        described = json.dumps({"module": self.architecture, **facts}, indent=2)
        (folder / ARCHITECTURE).write_text(described + "\n")


Network = MLP | Module


def _as_seen(shape: Sequence[int]) -> tuple[int, ...]:
    return (1, *shape) if len(shape) == 2 else tuple(shape)


def make(
    node: Mapping[str, Any],
    *,
    shape: Sequence[int],
    outputs: int,
    mean: float | list[float],
    std: float | list[float],
    key: str = "model",
) -> Module:
    """The module that a node of the configuration, `key`, describes, for examples of a shape.

    Of `inputs`, `outputs` and `shape` it is given those that its signature names and the node does
    not. Raises `UserError` if there is no such module.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_object

    name = str(node["_target_"])
    try:
        target = get_object(name)
    except Exception as error:
        raise UserError(f"{key}._target_={name}: cannot be imported ({_line(error)})") from error
    seen = _as_seen(shape)
    inputs = torch.Size(seen).numel()
    facts = {"inputs": inputs, "outputs": outputs, "shape": list(seen)}
    wanted = inspect.signature(target).parameters
    whole = dict(node) | {k: v for k, v in facts.items() if k in wanted and k not in node}
    try:
        return Module(whole, shape=shape, mean=mean, std=std, key=key)
    except InstantiationException as error:
        raise UserError(f"{key}._target_={name}: {_line(error)}") from error


def fault(module: Module, *, inputs: int, outputs: int) -> str | None:
    """What is wrong with a module, unless two examples give two rows of outputs."""
    wanted = f"must take a batch and return [batch, {outputs}]"
    rows = module.seen(torch.zeros(2, inputs))
    try:
        with torch.no_grad(), torch.random.fork_rng():
            y = module.body.eval()(rows)
    except Exception as error:
        return f"{wanted}; given {list(rows.shape)}: {_line(error)}"
    finally:
        module.train()
    if isinstance(y, Tensor) and y.shape == (2, outputs):
        return None
    returned = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
    return f"{wanted}; of two examples it returned {returned}"


def _line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[0]


def prepare(
    network: Network, *, weights: str | None, fresh: Sequence[str], frozen: Sequence[str]
) -> None:
    """Have weights read from a file, and parts frozen; `fresh` and `frozen` are patterns of names.

    The file is one of safetensors or of `torch.save`, a state_dict or a checkpoint of Lightning's;
    or the directory of a finished run. Raises `UserError` if it does not fit, but for `fresh`
    parts.
    """
    body = network if isinstance(network, MLP) else network.body
    own = body.state_dict()
    for key, patterns, names in (
        ("fresh", fresh, list(own)),
        ("frozen", frozen, [name for name, _ in body.named_parameters()]),
    ):
        for pattern in patterns:
            if not any(_matches(name, [pattern]) for name in names):
                raise UserError(f"model.{key}={pattern}: fits none of {', '.join(names)}")
    if weights is not None:
        stored = _read(Path(weights).expanduser())
        for same in _shared(body):  # of which a file may hold one
            stored |= {k: stored[j] for j in same if j in stored for k in same}
        kept = {k: v for k, v in stored.items() if not _matches(k, fresh)}
        needed = {k: v for k, v in own.items() if not _matches(k, fresh)}
        for what, names in (
            ("lacks", [k for k in needed if k not in kept]),
            ("also holds", [k for k in kept if k not in needed]),
            ("has in another shape", [k for k in kept if kept[k].shape != needed[k].shape])
            if kept.keys() == needed.keys()
            else ("", []),
        ):
            if names:
                raise UserError(
                    f"model.weights={weights}: does not fit the network: it {what} "
                    f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}; "
                    "model.fresh=[pattern] leaves parts out"
                )
        body.load_state_dict(own | kept)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(not _matches(name, frozen))
    if not any(parameter.requires_grad for parameter in body.parameters()):
        raise UserError(f"model.frozen={list(frozen)}: leaves nothing to be learned")


def _shared(body: nn.Module) -> list[list[str]]:
    """Names in the state_dict that mean one tensor."""
    names: dict[int, list[str]] = {}
    for name, value in body.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, p) or name.startswith(f"{p}.") for p in patterns)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        path = next((f for f in (path / "model" / WEIGHTS, path / WEIGHTS) if f.exists()), path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"model.weights={path}: cannot be read ({_line(error)})") from error
    state = stored.get("state_dict", stored)
    for prefix in ("network.body.", "network."):
        if state and all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def sources(network: Network) -> list[str]:
    """The files and packages of one's own that a network's classes are written in."""
    from hydra.utils import get_object

    if isinstance(network, MLP):
        return []
    made = get_object(network.architecture["node"]["_target_"])
    names = [made.__module__, *(type(layer).__module__ for layer in network.body.modules())]
    found = []
    for name in sorted({name.partition(".")[0] for name in names} - {"perceptrail", "__main__"}):
        path = Path(sys.modules[name].__file__ or "")
        path = path.parent if path.name == "__init__.py" else path
        if not any(path.is_relative_to(sysconfig.get_path(k)) for k in ("purelib", "platlib")):
            found.append(str(path))
    return found


def load(folder: Path) -> tuple[Network, dict[str, Any]]:
    """Read what `save` wrote: the network, ready to predict, and the further facts."""
    facts = read_json(folder / ARCHITECTURE)
    try:
        return _load(folder, facts)
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{shown(folder)}: holds no network that can be read ({error})") from error


def _load(folder: Path, facts: dict[str, Any]) -> tuple[Network, dict[str, Any]]:
    if "module" not in facts:
        return MLP.load(folder)
    described = facts.pop("module")
    try:
        module = Module(described.pop("node"), **described)
    except UserError:
        raise
    except Exception as error:
        name = read_json(folder / ARCHITECTURE)["module"]["node"]["_target_"]
        raise UserError(f"{folder}: {name} cannot be made anew ({_line(error)})") from error
    load_model(module.body, folder / WEIGHTS)
    return module.eval(), facts
