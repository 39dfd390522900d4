"""The training of a group: all members make each step together, and each leaves when it is done."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceptrail.data.module import GATHERED, Batch, numbers
from perceptrail.fused.member import Course, Member
from perceptrail.fused.orders import Orders, draw
from perceptrail.fused.progress import Progress
from perceptrail.fused.stack import Stack
from perceptrail.fused.update import OFF, OWN, Update, column
from perceptrail.fused.vmapped import Vmapped
from perceptrail.model import MLP
from perceptrail.network import Module, Network
from perceptrail.replay import Replay


class Group:
    """Members of one shape, in training."""

    def __init__(self, members: Sequence[Member]) -> None:
        first = members[0]
        self._members, self._device = list(members), first.device
        self._epochs, self._size = first.epochs, first.data.batch_size
        self._steps = math.ceil(first.data.n_train / self._size)
        self._numbers = list(range(len(members)))
        self._orders: Orders | None = None
        self._graphs = first.graphs
        self._replayed: tuple[bool, Replay] | None = None  # with dropout or without, and how
        self._task = first.task.stacked([member.task for member in members]).to(self._device)
        self._collect()
        self._stack = _stacked([member.network for member in members], device=self._device)
        defaults = [member.optimizer([torch.zeros(1)]).defaults for member in members]
        courses = {member.factor[0] for member in members}
        self._alike = len(courses) == 1 and all(
            own[name] == defaults[0][name] for own in defaults for name in OWN
        )
        chosen = [member.regularization for member in members]
        self._update = Update(
            self._stack.parameters,
            first.optimizer.func,
            first.optimizer.keywords,
            decays=[own["weight_decay"] for own in defaults],
            bounds={
                name: [off if own[name] is None else own[name] for own in chosen]
                for name, off in OFF.items()
            },
            alike=self._alike,
        )
        self._rates = np.array([float(own["lr"]) for own in defaults])
        self._factors = _Courses([member.factor for member in members])
        self._dropouts = _Courses([member.dropout for member in members])
        smoothing = [own["label_smoothing"] for own in chosen]
        self._smoothing = self._tensor(smoothing)[:, None] if any(smoothing) else None
        data = [member.data for member in members]
        means, stds = (np.array([getattr(own, k) for own in data]) for k in ("mean", "std"))
        self._scale, self._shift = (  # [members, 1, 1 or inputs]
            self._tensor(values.reshape(len(data), 1, -1)) for values in (1 / stds, -means / stds)
        )
        self._progress = Progress(members, steps=self._steps)
        self._best: dict[str, Tensor] = {
            name: value.clone() for name, value in self._stack.state.items()
        }

    def _tensor(self, values: Sequence[float] | NDArray[np.float64]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _collect(self) -> None:
        """Have the examples of all data sets in one table, and each member's rows there."""
        sets = {id(member.data.dataset): member.data.dataset for member in self._members}
        parts = [dataset.train() for dataset in sets.values()]
        self._x, self._y = (
            torch.from_numpy(np.concatenate(p) if len(p) > 1 else p[0]).to(self._device)
            for p in zip(*parts, strict=True)
        )
        if self._x.shape[1] == 2:  # pairs are gathered as one number each: it takes a quarter
            self._x = torch.view_as_complex(numbers(self._x).contiguous())
        ends = np.cumsum([0, *(len(y) for _, y in parts)]).tolist()
        starts = dict(zip(sets, ends[:-1], strict=True))
        self._train, self._val = (
            torch.stack([m.data.rows[k] + starts[id(m.data.dataset)] for m in self._members])
            for k in (0, 1)
        )
        self._train, self._val = self._train.to(self._device), self._val.to(self._device)

    def fit(self, told: Callable[[int], object]) -> None:
        """Train until every member is done; `told` hears how many epochs have been dealt with."""
        started = time.perf_counter()
        if self._device.type == "cuda":
            seeds = [member.seed for member in self._members]
            self._orders = Orders(seeds, self._train.shape[1], epochs=self._epochs)
            self._order = torch.empty(self._train.shape, dtype=torch.int32, pin_memory=True)
        try:
            self._ahead = self._plan(0)
            for epoch in range(self._epochs):
                present, gone = len(self._members), self._settle(self._epoch(epoch))
                for member in gone:
                    member.outcome.seconds = time.perf_counter() - started
                told(present + len(gone) * (self._epochs - epoch - 1))
                if not self._members:
                    return
        finally:
            if self._orders:
                self._orders.close()

    def _plan(self, epoch: int) -> "_Plan":
        """What an epoch's steps are to be made by; on a GPU it need not have arrived."""
        t = [(epoch + k / self._steps) / self._epochs for k in range(self._steps)]
        if self._orders:
            order = self._order[: len(self._members)]
            self._orders.take(self._numbers, out=order.numpy())
            # The next is put where this one was: after a sync, but for the first.
            order = order.to(self._device, non_blocking=epoch > 0)
        else:
            seeds = [member.seed for member in self._members]
            order = torch.from_numpy(draw(seeds, self._train.shape[1], epoch))
        rows = self._train.gather(1, order.long())
        return _Plan(rows, self._rates * self._factors(t), self._dropouts(t))

    def _epoch(self, epoch: int) -> dict[str, NDArray[np.float64]]:
        """Train and validate once; the columns [members] of the history."""
        plan, begin = self._ahead, _mark(self._device)
        losses = self._train_epoch(epoch, plan)
        if epoch + 1 < self._epochs:  # while a GPU works
            self._ahead = self._plan(epoch + 1)
        end = _mark(self._device)
        found = {f"val/{name}": values for name, values in self._validate().items()}
        known = {"dropout": plan.dropouts[-1], "train/loss": losses, "lr": plan.rates[-1]}
        columns = {
            name: values.cpu().numpy().astype(np.float64) if isinstance(values, Tensor) else values
            for name, values in {**found, **known}.items()
        }
        speed = self._train.shape[1] / _seconds(begin, end)
        return {**columns, "train/samples_per_second": np.full(len(self._members), speed)}

    def _train_epoch(self, epoch: int, plan: "_Plan") -> Tensor:
        """Make an epoch's steps; the mean losses [members]."""
        n, seeds = self._train.shape[1], [member.seed for member in self._members]
        source = np.random.SeedSequence([*seeds, epoch])
        torch.manual_seed(int(source.generate_state(1, np.uint64)[0]))
        rates, dropouts = (torch.from_numpy(own.astype(np.float32)) for own in plan[1:])
        paces = plan.rates[:, 0].tolist() if self._alike else rates.to(self._device)
        moving, on = bool((plan.dropouts != plan.dropouts[0]).any()), None
        advance: Callable[..., Tensor] = self._make_step
        batches: Iterator[tuple[Tensor, ...]] = self._batches(plan.rows, self._size)
        if self._graphs:
            on = bool(plan.dropouts.any())
            batches = ((own,) for own in plan.rows.split(self._size, 1))
            advance = self._replay(on)
        dropouts = dropouts.to(self._device)
        total = torch.zeros(len(seeds), device=self._device)
        for step, batch in enumerate(batches):
            if step == 0 or moving:
                self._stack.set_dropout(dropouts[step], on=on)
            self._update.set_rate(paces[step])
            total += advance(*batch) * batch[-1].shape[1]
        return total / n

    def _make_step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on standardised inputs and labels; the losses [members] before it."""
        loss = partial(self._task.losses_and_slopes, y=y, label_smoothing=self._smoothing)
        losses = self._stack.learn(x, loss)
        return losses + self._update.step(self._stack.parameters, self._stack.weights)

    def _replay(self, dropout: bool) -> Replay:
        """What makes steps on examples by rows [members, batch], for this stack and no other."""
        if self._replayed is None or self._replayed[0] != dropout:

            def step(rows: Tensor) -> Tensor:
                return self._make_step(*self._gather(rows))

            replay = Replay(step, self._update.optimizer, device=self._device)
            self._replayed = dropout, replay
        return self._replayed[1]

    @torch.no_grad()
    def _validate(self) -> dict[str, Tensor]:
        """Loss and measures [members] on the validation data."""
        extras = [member.extras for member in self._members if member.extras is not None]
        tasks = [member.task for member in self._members]
        parts = []
        for x, y in self._batches(self._val):
            outputs = self._stack(x)
            parts.append(self._task.sums(outputs, y))
            for extra, task, *batch in (
                zip(extras, tasks, outputs, y, strict=True) if extras else ()
            ):
                extra.update(task, *batch)
        found = self._task.metrics(sum(parts[1:], parts[0]), self._val.shape[1])
        further = [extra.compute() for extra in extras]
        for name in further[0] if further else ():
            found[name] = torch.stack([own[name] for own in further])
        return found

    def _batches(self, rows: Tensor, size: int = 1) -> Iterator[Batch]:
        """Examples by rows [members, n], as (x [members, batch, inputs], y [members, batch, ...]).

        Without a size, the batches are as large as the cache allows.
        """
        members, inputs = len(rows), self._members[0].data.inputs
        many = max(1, GATHERED // (torch.float32.itemsize * members * inputs * size)) * size
        for chunk in rows.split(many, 1):
            step = many if size == 1 else size
            yield from zip(*(part.split(step, 1) for part in self._gather(chunk)), strict=True)

    def _gather(self, rows: Tensor) -> Batch:
        """The examples that rows [members, n] name."""
        picked, members = rows.reshape(-1), len(rows)
        x = self._x.index_select(0, picked)
        x = torch.view_as_real(x) if x.is_complex() else x
        x = numbers(x).view(members, rows.shape[1], self._members[0].data.inputs)
        y = self._y.index_select(0, picked)
        y = y.view(members, -1, *y.shape[1:])
        return x.mul_(self._scale).add_(self._shift), y  # addcmul takes twice as long, if not more

    def _settle(self, columns: dict[str, NDArray[np.float64]]) -> list[Member]:
        """See how the members' epoch went, and part with those that are done."""
        improved, done = self._progress.add(columns)
        better, state = torch.from_numpy(improved).to(self._device), self._stack.state
        for name, best in self._best.items():
            torch.where(column(better, best), state[name], best, out=best)
        if not done.any():
            return []
        leaving = torch.from_numpy(np.flatnonzero(done)).to(self._device)
        states = [
            {key: value[leaving].cpu().numpy() for key, value in of_all.items()}
            for of_all in (self._best, state)
        ]
        gone = self._progress.part(done)
        for k, member in enumerate(gone):
            member.outcome.states = {
                name: {key: value[k, ...].copy() for key, value in of_all.items()}
                for name, of_all in zip(("best", "last"), states, strict=True)
            }
        self._keep(np.flatnonzero(~done).tolist())
        return gone

    def _keep(self, members: list[int]) -> None:
        """Go on with these members alone."""
        self._members = [self._members[k] for k in members]
        self._numbers = [self._numbers[k] for k in members]
        if not members:
            return
        self._stack.keep(members)
        self._update.keep(members, self._stack.parameters)
        self._task.keep(members)
        self._replayed = None
        for name in ("_rates", "_smoothing", "_scale", "_shift", "_train", "_val"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[members])
        self._ahead = self._ahead.keep(members)
        for courses in (self._factors, self._dropouts):
            courses.keep(members)
        self._best = {name: value[members] for name, value in self._best.items()}


def _stacked(networks: Sequence[Network], *, device: torch.device) -> Stack | Vmapped:
    plain = [network for network in networks if isinstance(network, MLP)]
    if plain:
        return Stack(plain, device=device)
    return Vmapped([own for own in networks if isinstance(own, Module)], device=device)


class _Plan(NamedTuple):
    """What an epoch's steps are made by."""

    rows: Tensor  # [members, n] of the table of examples, in the order of the epoch
    rates: NDArray[np.float64]  # [steps, members]
    dropouts: NDArray[np.float64]  # [steps, members]

    def keep(self, members: list[int]) -> "_Plan":
        """For these members alone."""
        return _Plan(self.rows[members], self.rates[:, members], self.dropouts[:, members])


def _mark(device: torch.device) -> Any:
    """The moment at which a device is done with what it has been given until now."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begin: Any, end: Any) -> float:
    """What lies between two such moments, once they have come."""
    return float(
        begin.elapsed_time(end) / 1000 if isinstance(begin, torch.cuda.Event) else end - begin
    )


class _Courses:
    """Members' functions of progress; of those that are the same, one is called."""

    def __init__(self, courses: Sequence[Course]) -> None:
        different = dict(courses)
        self._functions = list(different.values())
        place = {name: k for k, name in enumerate(different)}
        self._which = np.array([place[name] for name, _ in courses])

    def __call__(self, times: Sequence[float]) -> NDArray[np.float64]:
        """Their values, [times, members]."""
        values = [[function(t) for function in self._functions] for t in times]
        return np.array(values, dtype=np.float64)[:, self._which]

    def keep(self, members: list[int]) -> None:
        """Go on with these members alone."""
        self._which = self._which[members]
