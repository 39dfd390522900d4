"""Many steps of a plain network at once, compiled: nothing lies between one kernel and the next."""

import linecache
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from textwrap import indent
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from perceptrail.data.module import GATHERED, Batch, numbers
from perceptrail.gradient import ONE_EXAMPLE, Gradient
from perceptrail.linear import Linear, by_inputs, by_weight, is_large, outputs
from perceptrail.losses import of_classes, of_two
from perceptrail.model import MLP, Dropout
from perceptrail.stepping import Settings, State, Step, adam, settings

KINDS = (Linear, nn.BatchNorm1d, nn.ReLU, Dropout)  # of layers that are known here

# The losses of steps, and the gradients of the last.
Written = Callable[..., tuple[list[Tensor], list[Tensor]]]


class Own(NamedTuple):
    """What a step has of its own: the rate, and each dropout's mask, a single 1 for none."""

    lr: float
    masks: list[Tensor]


class Steps:
    """Makes the steps that `Gradient` and `Step` would make by the usual loss, to the bit.

    For small networks the way through Python from kernel to kernel takes as long as the kernels.
    Here a step is written down as one kernel after the other, which TorchScript runs. Inputs that
    are `fresh`, of no further use, are overwritten, to leave others in the cache.
    """

    @staticmethod
    def suits(network: nn.Module, step: Step) -> bool:
        """Whether a network that `Gradient` serves has none but known layers, and the optimizer all
        of its parameters alike.
        """
        learned = [p for group in step.groups for p in group["params"]]
        return (
            Gradient.suits(network)
            and isinstance(network, MLP)
            and all(type(layer) in KINDS for layer in network.layers)
            and len(step.groups) == 1
            and [*map(id, learned)] == [*map(id, network.parameters())]
        )

    def __init__(
        self, network: MLP, step: Step, *, fresh: bool, dtype: torch.dtype = torch.float32
    ) -> None:
        self._network, self._step, self._fresh, self._dtype = network, step, fresh, dtype
        self._tensors = _tensors(network)
        self._parameters = list(network.parameters())
        self._normed = any(isinstance(layer, nn.BatchNorm1d) for layer in network.layers)
        self._dropouts: list[tuple[Dropout, int, torch.dtype]] = []  # with what they are given
        self._written: dict[tuple[bool, ...], Written] = {}
        self._gradients: list[Tensor] = []
        width, given = network.architecture["inputs"], torch.float32
        for layer in network.layers:
            if isinstance(layer, nn.Linear):
                width, given = layer.out_features, _own(layer, dtype)
            elif isinstance(layer, Dropout):
                self._dropouts.append((layer, width, given))

    @property
    def ready(self) -> bool:
        """Whether the optimizer's steps are those of one kernel alone, as all but the first are."""
        return bool(self._step.states)

    def own(self, n: int) -> Own:
        """What a step, of n examples, has of its own, as things are set now."""
        if n == 1 and self._normed:
            raise ValueError(ONE_EXAMPLE)
        masks = [
            f.mask(torch.empty(n, width, dtype=dtype)) if f.p else self._tensors["one"]
            for f, width, dtype in self._dropouts
        ]
        return Own(self._step.groups[0]["lr"], masks)

    @torch.no_grad()
    def __call__(self, batches: Sequence[Batch], owns: Sequence[Own]) -> list[Tensor]:
        """Learn batches (inputs [n, d], labels [n]), a step each; their losses."""
        drops = tuple(any(own.masks[d].dim() for own in owns) for d in range(len(self._dropouts)))
        tensors = self._parameters, list(self._tensors.values())
        by = settings(self._step.groups[0])
        half = self._dtype != torch.float32  # which is written down, not left to autocasting
        casting = torch.autocast("cpu", enabled=False) if half else nullcontext()
        with optimized_execution(False), casting:  # to optimize what is compiled would take 0.1 s
            if drops not in self._written:
                text = written(self._network, drops, fresh=self._fresh, dtype=self._dtype)
                self._written[drops] = compiled(text)
            losses, self._gradients = self._written[drops](
                list(batches), list(owns), *tensors, self._step.states[0], by
            )
        return losses

    def leave(self) -> None:
        """Leave the last step's gradients with the parameters, where others may look for them."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient


def some(batches: Iterable[Batch]) -> list[Batch]:
    """The next few, as many as are gathered at once."""
    taken, size = list[Batch](), 0
    for x, y in batches:
        taken.append((x, y))
        size += x.nbytes
        if size + x.nbytes > GATHERED:
            break
    return taken


@cache
def compiled(text: str) -> Written:
    """The function `steps` of a text, by TorchScript."""
    known: dict[str, Any] = {"__name__": __name__}
    known |= {f.__name__: f for f in (Own, State, Settings, Tensor, torch, adam)}
    known |= {f.__name__: f for f in (numbers, outputs, by_weight, by_inputs)}
    known |= {f.__name__: f for f in (of_classes, of_two)}
    name = f"<steps {len(linecache.cache)}>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name  # to be read
    exec(compile(text, name, "exec"), known)
    if sys.version_info >= (3, 14):  # where TorchScript is not supported
        by_python: Written = known["steps"]
        return by_python
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript will not be there for ever
        function = torch.jit.script(known["steps"])
    torch._C._jit_pass_inline(function.graph)  # a call takes as long as a small kernel
    by_script: Written = function
    return by_script


def written(network: MLP, drops: Sequence[bool], *, fresh: bool, dtype: torch.dtype) -> str:
    """The steps of a network with those dropouts that drop something, as a function in Python."""
    layers, scale, out = list(network.layers), network.standardise.scale, ", out=x" * fresh
    there = ["x = numbers(x)", f"x = torch.add(shift, x, alpha={scale}{out})"]
    if isinstance(scale, Tensor):
        there[1] = f"x = torch.addcmul(shift, x, scale{out})"
    back: list[str] = []
    given, p, d = torch.float32, 0, 0  # what a layer is given; the next parameter, dropout
    for i, layer in enumerate(layers):
        a, w, b, of_w, of_b = f"a{i}", f"p{p}", f"p{p + 1}", f"g{p}", f"g{p + 1}"
        lines: list[str] = []
        if isinstance(layer, nn.Linear):
            own, large = _own(layer, dtype), is_large(layer.weight, dtype)
            relu = i + 1 < len(layers) and isinstance(layers[i + 1], nn.ReLU)
            there += [f"{a} = {_cast('x', given, own)}"]
            if own != torch.float32:
                there += [f"w{i} = {_cast(w, torch.float32, own)}"]
                w = f"w{i}"
            there += [f"x = outputs({a}, {w}, {_cast(b, torch.float32, own)}, {large}, {relu})"]
            lines = [f"{of_w} = {_cast(f'by_weight(g, {a}, {large})', own, torch.float32)}"]
            lines += [f"{of_b} = {_cast('g.sum(0)', own, torch.float32)}"]
            if p:
                lines += [f"g = {_cast(f'by_inputs(g, {w}, {large})', own, given)}"]
            given, p = own, p + 2
        elif isinstance(layer, nn.BatchNorm1d):
            running, eps = f"running_mean{i}, running_var{i}", layer.eps
            there += [f"{a} = x", f"num_batches_tracked{i}.add_(1)"]
            norm = f"{a}, {w}, {b}, {running}, True, {layer.momentum}, {eps}"
            there += [f"x, m{i}, s{i} = torch.native_batch_norm({norm})"]
            norm = f"g, {a}, {w}, {running}, m{i}, s{i}, True, {eps}, [True, True, True]"
            lines = [f"g, {of_w}, {of_b} = torch.ops.aten.native_batch_norm_backward({norm})"]
            p += 2
        elif isinstance(layer, nn.ReLU):
            if not isinstance(layers[i - 1], nn.Linear):  # whose outputs have it done
                there += ["x = x.relu_()"]
            there += [f"{a} = x"]
            lines = [f"g = torch.ops.aten.threshold_backward(g, {a}, 0)"]
        else:
            if drops[d]:
                there += [f"x = x * own.masks[{d}]"]
                lines = [f"g = g * own.masks[{d}]"] if p else []
            d += 1
        back = lines + back
    z = _cast("x", given, torch.float32)
    several = network.architecture["outputs"] > 1
    loss = f"of_classes({z}, y, one)" if several else f"of_two({z}, y.to(torch.float32), one)"
    there += [f"loss, g = {loss}", "losses.append(loss)"]
    if given != torch.float32:
        there += [f"g = {_cast('g', torch.float32, given)}"]
    left = f"gradients = [{', '.join(f'g{k}' for k in range(p))}]"
    step = "adam(parameters, gradients, state, own.lr, by)"
    body = indent("\n".join([*there, *back, left, step]), 8 * " ")
    return f"""\
def steps(
    batches: list[tuple[Tensor, Tensor]],
    owns: list[Own],
    parameters: list[Tensor],
    tensors: list[Tensor],
    state: State,
    by: Settings,
) -> tuple[list[Tensor], list[Tensor]]:
    {", ".join(f"p{k}" for k in range(p))} = parameters
    {", ".join(_tensors(network))} = tensors
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for (x, y), own in zip(batches, owns):
{body}
    return losses, gradients
"""


def _tensors(network: MLP) -> dict[str, Tensor]:
    """What is given to the steps besides the parameters."""
    found = {"one": torch.ones(()), "shift": network.standardise.shift.float()}
    if isinstance(network.standardise.scale, Tensor):
        found["scale"] = network.standardise.scale
    for name, buffer in network.layers.named_buffers():
        layer, _, kind = name.partition(".")
        found[f"{kind}{layer}"] = buffer
    return found


def _own(layer: nn.Linear, dtype: torch.dtype) -> torch.dtype:
    """The type of a linear layer's product, where that of large ones is `dtype`."""
    return dtype if is_large(layer.weight, dtype) else torch.float32


def _cast(name: str, given: torch.dtype, wanted: torch.dtype) -> str:
    return name if given == wanted else f"{name}.to({wanted})"
