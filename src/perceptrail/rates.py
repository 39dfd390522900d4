"""The learning-rate range test: the loss of a training whose rate grows from step to step.

Smith 2017, arXiv:1506.01186, section 3.3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm

from perceptrail import config, figures, runs
from perceptrail.build import dataset, task_name
from perceptrail.config import OWN
from perceptrail.errors import UserError
from perceptrail.gallery import DPI
from perceptrail.training import assemble

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 200
SMOOTHING = 0.9  # share of the past in a smoothed loss
WINDOW = 20  # steps over which a slope is taken, a tenth of them
DIVERGED = 3.0  # times the lowest loss, which ends the test
PICTURE = "lr_find.png"


@dataclass(frozen=True)
class Range:
    """The rates tried, in order, and the smoothed loss [n] at each."""

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def suggestion(self) -> float:
        """The rate at which the loss falls fastest, by the logarithm of the rate."""
        logs, best = np.log(self.rates), int(self.losses.argmin())
        if best < 2 * WINDOW:
            return float(self.rates[best])
        # The slope over some steps round each, from where a smoothed loss can be trusted.
        slopes = (self.losses[WINDOW:] - self.losses[:-WINDOW])[WINDOW : best + 1]
        steepest = int(slopes.argmin()) + WINDOW
        return float(np.exp((logs[steepest] + logs[steepest + WINDOW]) / 2))


def find(cfg: DictConfig) -> float:
    """Make the test for the training that `cfg` describes; print and draw it, return the rate."""
    config.validate(cfg)
    if task_name(cfg) == OWN:
        raise UserError(f"task={OWN}: must be another; a module of one's own sets its rates itself")
    parts = assemble(cfg, dataset(cfg))
    assert parts.optimizer is not None
    optimizer = parts.optimizer(parts.network.parameters())
    found = sweep(parts.network, parts.task.loss, optimizer, parts.data.train_dataloader)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    drawn = figures.rate_range(found.rates, found.losses, found.suggestion)
    drawn.savefig(run_dir / PICTURE, dpi=DPI)
    print(
        f"{len(found.rates)} steps from {found.rates[0]:.1e} to {found.rates[-1]:.1e}: the loss "
        f"falls fastest at optimizer.lr={found.suggestion:.2g}\n"
        f"picture: {runs.shown(run_dir / PICTURE)}"
    )
    return found.suggestion


def sweep(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Any],
) -> Range:
    """Train for `STEPS` steps, or until the loss diverges; `batches` gives an epoch's chunks."""
    network.train()
    stream = chain.from_iterable(chain.from_iterable(b() for b in repeat(batches)))
    rates: list[float] = []
    losses: list[float] = []
    past = 0.0
    growth = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
    steps = tqdm(islice(stream, STEPS), total=STEPS, unit="step", disable=None, leave=False)
    for i, (x, y) in enumerate(steps):
        rate = LOWEST * growth**i
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        value = loss(network(x), y)
        value.backward()
        optimizer.step()
        past = SMOOTHING * past + (1 - SMOOTHING) * float(value.detach())
        smooth = past / (1 - SMOOTHING ** (i + 1))
        if not math.isfinite(smooth) or (losses and smooth > DIVERGED * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
    return Range(np.array(rates), np.array(losses))
