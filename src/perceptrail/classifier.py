"""How a network learns: the loss, its penalties, the optimizer and the learning-rate schedule."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from perceptrail.compiled import Steps, some
from perceptrail.data.module import Batch, Batches, Chunks, numbers
from perceptrail.distillation import Relabel
from perceptrail.gradient import Autograd, Gradient
from perceptrail.model import MLP
from perceptrail.network import Network
from perceptrail.replay import Replay, obstacle
from perceptrail.stepping import Step
from perceptrail.tasks import Classification, Task

if TYPE_CHECKING:
    from perceptrail.extras import Extras

log = logging.getLogger(__name__)

# A function of progress in [0, 1] -> factor of the rate, or a partial of a torch scheduler class.
Schedule = partial[Any]

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}  # of large products


class _Watched:
    """The optimizer's steps by Lightning."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def forget(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad()

    def __call__(self) -> None:
        """Make a step by the gradients that the parameters hold."""
        self._optimizer.step()


class Classifier(pl.LightningModule):
    """Trains a network for a task on batches (inputs [batch, d], targets [batch, ...]).

    Lightning hands over many batches at a time and the loop over them is here, because for small
    networks the way from one step to the next costs as much as the step (manual optimization).
    Per-step values stay tensors on the device and are read once an epoch. `train/loss` is the loss
    that is minimised, smoothing and penalties included; `val/loss` is without.

    With `adversarial`, half of the loss is that of inputs shifted against their labels: along the
    loss's gradient, by so many standard deviations of the data (root mean square over an input's
    values). Goodfellow et al. 2015, arXiv:1412.6572, section 6; the shift's form is that of Miyato
    et al. 2017, arXiv:1605.07725, section 3.

    `extras` are further metrics, of all validation examples.

    With `relabel`, training batches are learned by the labels that it makes of them.

    On a GPU, steps are replayed as CUDA graphs, if `graphs` and where nothing stands against it.

    A step is made for every `accumulate` batches, by their mean gradient, which `gradient_clip`
    bounds in its length (`clip_by` norm) or in each of its values (value). If it is `watched`,
    Lightning's optimizer makes it, and tells the callbacks. Where batches come one at a time,
    callbacks are given each, and its loss.

    `before_step` holds functions to be called with the progress t in [0, 1) before each step.
    """

    def __init__(
        self,
        network: Network,
        *,
        task: Task | None = None,  # classification
        extras: "Extras | None" = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Schedule | None = None,
        label_smoothing: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        max_norm: float | None = None,
        gradient_clip: float | None = None,
        clip_by: str = "norm",
        accumulate: int = 1,
        watched: bool = False,
        adversarial: float = 0.0,
        relabel: Relabel | None = None,
        graphs: bool = True,
        monitor: str = "val/loss",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.task, self._extras = network, task or Classification(), extras
        self._make_optimizer, self._schedule = optimizer, schedule
        self._label_smoothing, self._l1, self._l2 = label_smoothing, l1, l2
        self._max_norm, self._gradient_clip, self._monitor = max_norm, gradient_clip, monitor
        clips: dict[str, Callable[..., Any]] = {"norm": clip_grad_norm_, "value": clip_grad_value_}
        self._clip = clips[clip_by]
        self._accumulate, self._watched = accumulate, watched
        self._adversarial, self._relabel, self._graphs = adversarial, relabel, graphs
        self.before_step: list[Callable[[float], None]] = []
        self.step_losses: list[Tensor] = []  # of this epoch, for every step a scalar
        self._losses: Tensor | None = None  # where they lie
        self._step_sizes: list[int] = []
        self._pending: list[Tensor] = []  # losses of batches whose step has not been made
        self._pending_sizes: list[int] = []
        self._steps_per_epoch = self._batches = self._chunk = 0
        self._step: Step | _Watched | None = None
        self._gradient: Gradient | Autograd | None = None
        self._compiled: Steps | None = None
        learn = self._make_step if accumulate == 1 else self._add
        self._advance: Callable[[Tensor, Tensor], Tensor] = learn
        self._sums: Tensor | None = None  # of the validation
        self._validated = 0  # examples

    @property
    def step(self) -> int:
        """How many optimizer steps have been made."""
        return self.trainer.current_epoch * self._steps_per_epoch + len(self.step_losses)

    @property
    def steps(self) -> int:
        """How many optimizer steps the whole training has."""
        steps = (self.trainer.max_epochs or 0) * self._steps_per_epoch
        return steps if self.trainer.max_steps < 0 else min(steps, self.trainer.max_steps)

    @property
    def epoch_samples(self) -> int:
        """How many examples this epoch has seen so far in this process."""
        return sum(self._step_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, outputs]."""
        logits: Tensor = self.network(x)
        return logits

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of one batch that training minimises."""
        loss = self.task.loss(self.network(x), y, label_smoothing=self._label_smoothing)
        if self._l1:
            loss = loss + self._l1 * sum(w.abs().sum() for w in self.network.weights)
        if self._l2:
            loss = loss + self._l2 / 2 * sum(w.square().sum() for w in self.network.weights)
        return loss

    def on_train_start(self) -> None:
        """Note how long an epoch is, and take the optimizer."""
        chunks = self.trainer.train_dataloader
        assert isinstance(chunks, Chunks)
        self._chunk = chunks.size
        self._batches = min(chunks.total, int(self.trainer.num_training_batches) * chunks.size)
        self._steps_per_epoch = math.ceil(self._batches / self._accumulate)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        self._step = _Watched(self.optimizers()) if self._watched else Step(optimizer)
        self._gradient = self._differentiation()
        plain = chunks.batches if isinstance(chunks.batches, Batches) else None
        self._compiled = self._compilation(fresh=plain is not None)
        if plain is not None:
            plain.as_stored = self._compiled is not None
        if self._graphs and self.device.type == "cuda" and self.trainer.world_size == 1:
            reason = obstacle(self.network, optimizer)
            if self._watched or self._accumulate > 1:
                reason = "a callback watches them" if self._watched else "each is of many batches"
            if reason:
                log.info("Steps go one by one, not as a CUDA graph: %s", reason)
            else:
                self._advance = Replay(self._make_step, optimizer, device=self.device)

    def _differentiation(self) -> Gradient | Autograd:
        """What finds the gradients of a step's loss, of each half by itself if it has two."""
        share, trainer = 0.5 if self._adversarial else 1.0, self.trainer
        alone = trainer.world_size == 1 and not self._watched
        plain = trainer.precision in DTYPES and alone
        own_loss = getattr(self.loss, "__func__", None) is not Classifier.loss
        own_loss = own_loss or not self.task.is_plain
        if plain and not (own_loss or self._l1 or self._l2) and Gradient.suits(self.network):
            assert isinstance(self.network, MLP)
            loss = partial(
                self.task.loss_and_slope, label_smoothing=self._label_smoothing, share=share
            )
            return Gradient(self.network, loss, dtype=DTYPES[str(trainer.precision)])
        # With several processes, Lightning has them agree on the gradient.
        backward = Tensor.backward if alone else self.manual_backward
        return Autograd(lambda x, y: self.loss(x, y) * share, backward=backward)

    def _compilation(self, *, fresh: bool) -> Steps | None:
        """What makes steps many at once, where they are of the plainest kind."""
        bounds, others = (self._gradient_clip, self._max_norm), (self._adversarial, self._relabel)
        more = any(others) or bool(self._label_smoothing) or bounds != (None, None)
        known = type(self.task) is Classification and self.task.weights is None
        known = known and all(str(f.__module__).startswith(__package__) for f in self.before_step)
        if more or self._accumulate > 1 or self._chunk == 1 or not known:
            return None
        if not (isinstance(self._gradient, Gradient) and isinstance(self._step, Step)):
            return None
        if not Steps.suits(self.network, self._step):
            return None
        assert isinstance(self.network, MLP)
        dtype = DTYPES[str(self.trainer.precision)]
        return Steps(self.network, self._step, fresh=fresh, dtype=dtype)

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's losses."""
        self.step_losses.clear()
        self._losses = None
        self._step_sizes.clear()
        self._pending.clear()
        self._pending_sizes.clear()

    def training_step(self, given: Any, batch_idx: int) -> Tensor | None:
        """Learn a batch, or those of a chunk, and make the steps that are due.

        Returns the last batch's share of its step's loss, as Lightning has it.
        """
        batches: Iterator[Batch] = iter((given,) if self._chunk == 1 else given)
        before = len(self.step_losses)
        if self._compiled is not None and self._compiled.ready:
            loss = self._make_steps(islice(batches, self.steps - self.step))
        else:
            loss = self._step_by_step(batches, batch_idx * self._chunk)
        self._gather_losses(before)
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        progress.ready = progress.completed = self.step  # which Lightning has not seen
        if self.step == self.trainer.max_steps:
            self.trainer.should_stop = True  # after the validation that an epoch ends with
        return loss if loss is None else loss / self._accumulate

    def _gather_losses(self, first: int) -> None:
        """Have those from `first` on lie beside the others of the epoch.

        Small tensors that stay among the large ones of a step would keep the next step from taking
        the memory that this one has freed: with 1,024 images a batch 0.4 MB are lost each time.
        """
        if losses := self.step_losses[first:]:
            if self._losses is None:
                self._losses = losses[0].new_empty(self._steps_per_epoch)
            place = self._losses[first : first + len(losses)]
            self.step_losses[first:] = place.copy_(torch.stack(losses)).unbind()

    def _step_by_step(self, batches: Iterable[Batch], before: int) -> Tensor | None:
        """Learn batches, one after the other; the last one's loss. There were some `before`."""
        done, steps, loss = self.step, self.steps, None
        for number, (x, y) in enumerate(batches, before + 1):
            if done == steps:
                break
            if not self._pending:
                for prepare in self.before_step:
                    prepare(done / steps)
            loss = self._advance(numbers(x), y)
            self._pending.append(loss)
            self._pending_sizes.append(len(y))
            if (many := len(self._pending)) == self._accumulate or number == self._batches:
                if self._accumulate > 1:
                    self._finish(many)
                self.step_losses.append(loss if many == 1 else torch.stack(self._pending).mean())
                self._step_sizes.append(sum(self._pending_sizes))
                self._pending.clear()
                self._pending_sizes.clear()
                done += 1
        return loss

    def _make_steps(self, batches: Iterator[Batch]) -> Tensor | None:
        """Learn batches, several at once and compiled; the last one's loss."""
        assert self._compiled is not None
        done, steps, losses = self.step, self.steps, list[Tensor]()
        while group := some(batches):
            owns = []
            for _, y in group:
                for prepare in self.before_step:
                    prepare(done / steps)
                owns.append(self._compiled.own(len(y)))
                done += 1
            losses = self._compiled(group, owns)
            self.step_losses += losses
            self._step_sizes += [len(y) for _, y in group]
        if losses:
            self._compiled.leave()
        return losses[-1] if losses else None

    def _make_step(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimizer step; the loss before it."""
        loss = self._add(x, y)
        self._finish(1)
        return loss

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn one of the batches that a step is made by; its loss."""
        assert self._step is not None
        if not self._pending:
            self._step.forget()
        return self._learn(x, y)

    def _finish(self, batches: int) -> None:
        """Make the step by the gradients that so many batches have left."""
        assert self._step is not None
        if batches > 1:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad /= batches
        if not self._watched:
            self._bound()
        self._step()
        if self._max_norm is not None:
            self._shorten(self._max_norm)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Bound the gradient once the callbacks have seen it, in the order of Lightning's own."""
        self._bound()

    def _bound(self) -> None:
        if self._gradient_clip is not None:
            self._clip(self.network.parameters(), self._gradient_clip)

    def _learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Leave the loss's gradient in the parameters; returns the loss."""
        assert self._gradient is not None
        if self._relabel is not None:
            y = self._relabel(x, y)
        if not self._adversarial:
            return self._gradient(x, y)
        length = self._adversarial * self.network.standardise.std * x.shape[1] ** 0.5
        friendly, slope = self._gradient.by_inputs(x, y)
        return friendly + self._gradient(x + length * F.normalize(slope), y)

    @torch.no_grad()
    def _shorten(self, length: float) -> None:
        """Bound each hidden unit's incoming weights (Srivastava et al. 2014, section 5.1)."""
        for weight in self.network.weights[:-1] or self.network.weights:
            weight.copy_(torch.renorm(weight, 2, 0, length))

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean training loss, and step a scheduler that goes by epochs."""
        losses = torch.stack(self.step_losses)
        sizes = torch.tensor(self._step_sizes, device=losses.device)
        self.log("train/loss", (losses * sizes).sum() / sizes.sum(), sync_dist=True)
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step(self.trainer.callback_metrics[self._monitor])

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._sums, self._validated = None, 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the sums."""
        x, y = batch
        outputs = self.network(x)
        sums = self.task.sums(outputs, y)
        if self._extras is not None:
            self._extras.update(self.task, outputs, y)
        self._sums = sums if self._sums is None else self._sums + sums
        self._validated += len(y)

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the task's measures over all validation examples of all processes."""
        assert self._sums is not None
        examples = self._sums.new_full((1,), self._validated)
        total = self.trainer.strategy.reduce(torch.cat([self._sums, examples]), reduce_op="sum")
        found = self.task.metrics(total[:-1], total[-1])
        if self._extras is not None:
            found |= self._extras.compute()
        self.log_dict({f"val/{name}": value for name, value in found.items()})

    def configure_optimizers(self) -> Any:
        """The optimizer, with its learning-rate schedule if there is one."""
        optimizer = self._make_optimizer(self.parameters())
        if self._schedule is None:
            return optimizer
        if isinstance(self._schedule.func, type):
            return [optimizer], [self._schedule(optimizer)]
        factor = self._schedule
        rates = [group["lr"] for group in optimizer.param_groups]

        def set_rates(t: float) -> None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(t)

        self.before_step.append(set_rates)
        return optimizer
