"""Training steps as CUDA graphs: all of a step's kernels sent to the GPU at once."""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

log = logging.getLogger(__name__)

EAGER = 3  # steps before one is recorded: libraries and optimizers set themselves up in them

Step = Callable[..., Tensor]


class Replay:
    """Makes a step of tensors on a GPU: the first few as it is, then by what one has recorded.

    For small networks the way from one kernel to the next takes several times as long as the
    kernels. A CUDA graph holds those of a step with the addresses that they work on. Inputs are
    therefore copied to where they were at the recording, one for each of their shapes, and whatever
    else changes from step to step has to be in a tensor that stays where it is; the rates of the
    step's `optimizer` are kept in such ones here. Random numbers go on as they would without a
    graph, so that results are the same to the bit.

    A step that waits for the device cannot be recorded: it is made as it is for good, and the log
    says why. On a processor nothing is recorded; all else is the same, for tests.
    """

    def __init__(self, step: Step, optimizer: Optimizer, *, device: torch.device) -> None:
        self._step, self._optimizer = step, optimizer
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._known = [0.0] * len(self._rates)  # what they hold
        self._made: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple[tuple[Tensor, ...], Callable[[], Tensor]]] = {}
        self._on_gpu, self._refused = device.type == "cuda", False
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._pool: Any = None  # the memory that all graphs share
        # PyTorch is not to warn of what is done on purpose, and to count steps on the device.
        vars(optimizer)["_warned_capturable_if_run_uncaptured"] = True
        for group in optimizer.param_groups:
            for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
                if "capturable" in group and "step" in state:
                    state["step"] = state["step"].to(device)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Make a step; what it returns."""
        for k, group in enumerate(self._optimizer.param_groups):
            if self._known[k] != group["lr"]:
                self._known[k] = group["lr"]
                self._rates[k].fill_(group["lr"])
        shapes = tuple((value.shape, value.dtype) for value in inputs)
        if shapes in self._recorded:
            places, again = self._recorded[shapes]
            for place, value in zip(places, inputs, strict=True):
                place.copy_(value)
            return again()
        self._made[shapes] += 1
        last = self._made[shapes] == EAGER and not self._refused
        waits: list[str] = []
        with (
            self._aside(),
            self._held(),
            _watched(waits) if last and self._on_gpu else nullcontext(),
        ):
            result = self._step(*inputs)
        if waits:
            self._refused = True
            log.info("Steps go one by one, not as a CUDA graph: %s waits for the GPU", waits[0])
        elif last:
            places = tuple(value.clone() for value in inputs)
            self._recorded[shapes] = places, self._record(places)
        return result

    def _record(self, places: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        """What makes the step again on what the places hold."""

        def as_it_is() -> Tensor:
            with self._held():
                return self._step(*places)

        if not self._on_gpu:
            return as_it_is
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            result = as_it_is()
        self._pool = graph.pool()

        def again() -> Tensor:
            graph.replay()
            return result.clone()

        return again

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Send kernels to the stream of the recording, in their turn."""
        if self._stream is None:
            yield
            return
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            yield
        usual.wait_stream(self._stream)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Have the optimizer read its rates from the tensors, and count its steps in tensors."""
        groups = self._optimizer.param_groups
        keys = ("lr", "capturable")
        kept: list[dict[str, Any]] = [{k: g[k] for k in keys if k in g} for g in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
            if self._on_gpu and "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, own in zip(groups, kept, strict=True):
                group.update(own)


@contextmanager
def _watched(waits: list[str]) -> Iterator[None]:
    """Gather the places in the code where the processor waits for the GPU."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in seen:
        text = str(warning.message)
        if text.startswith("called a synchronizing"):
            waits.append(f"{Path(warning.filename).name}:{warning.lineno}")
        elif not text.startswith("Synchronization debug mode"):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def obstacle(network: nn.Module, optimizer: Optimizer) -> str | None:
    """Why a training step cannot be recorded, where that is plain."""
    if listens(network):
        return "a hook would be called no more"
    known = type(optimizer).__module__.startswith("torch.optim")
    if not known or not (type(optimizer) is SGD or "capturable" in optimizer.defaults):
        return f"{type(optimizer).__name__} is not made for it"
    return None


def listens(network: nn.Module) -> bool:
    """Whether there are hooks on a network's layers or parameters."""
    on_layers = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_parameters = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(f, kind) for f in network.modules() for kind in on_layers) or any(
        getattr(p, kind) for p in network.parameters() for kind in on_parameters
    )
