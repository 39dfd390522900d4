"""What there is to learn of an example: the loss, its gradient, and what is measured by it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn

from perceptrail import losses
from perceptrail.errors import UserError
from perceptrail.measures import KINDS

Loss = Callable[[Tensor, Tensor], Tensor]  # of outputs and targets, to a mean


class Task(nn.Module, ABC):
    """What outputs [..., n, outputs] are to say of targets y, as a `Dataset` has them.

    `names` are the classes, or what the numbers are called. `own_loss` takes the place of the
    task's. Where `...` are members of a stack, so are they in what is returned.
    """

    name: ClassVar[str]

    def __init__(self, names: Sequence[str] = (), *, own_loss: Loss | None = None) -> None:
        super().__init__()
        self.names, self._own_loss = tuple(names), own_loss

    @property
    def is_plain(self) -> bool:
        """Whether the loss is the task's, whose gradient is known here."""
        return self._own_loss is None

    @abstractmethod
    def example_losses(self, outputs: Tensor, y: Tensor, *, label_smoothing: Any = 0.0) -> Tensor:
        """The loss of each example [..., n]."""

    @abstractmethod
    def counts(self, outputs: Tensor, y: Tensor) -> list[Tensor]:
        """What `metrics` are computed from, each summed over the examples: [...], float64."""

    @abstractmethod
    def measured(self, counts: Sequence[Tensor], n: int | Tensor) -> Sequence[Tensor]:
        """The task's measures [...] by the counts of n examples."""

    @abstractmethod
    def predicted(self, outputs: Tensor) -> Tensor:
        """What outputs [n, outputs] say: labels [n], or numbers [n, outputs] in their own units."""

    @abstractmethod
    def said(self, outputs: Tensor) -> Tensor:
        """What outputs [n, outputs] say, in numbers [n, names]: of each class or label the
        probability, of numbers each in its own unit.
        """

    @abstractmethod
    def answers(self, outputs: Tensor) -> dict[str, Any]:
        """What outputs [n, outputs] say, in columns by name."""

    @abstractmethod
    def told(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What outputs say and what is true, as torchmetrics takes both: for each class or label a
        probability, numbers in their own units.
        """

    def seen(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets as a loss of one's own takes them."""
        return outputs, y

    def loss(self, outputs: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of outputs [n, outputs]."""
        if self._own_loss is not None:
            return self._own_losses(outputs, y)
        return self._loss(outputs, y, label_smoothing=label_smoothing)

    def _loss(self, outputs: Tensor, y: Tensor, *, label_smoothing: float) -> Tensor:
        return self.example_losses(outputs, y, label_smoothing=label_smoothing).mean()

    @abstractmethod
    def loss_and_slope(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: float = 0.0, share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """A `share` of the task's loss, and its gradient by the outputs [n, outputs]."""

    def losses_and_slopes(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Members' mean losses, and their gradients by the outputs [members, n, outputs]."""
        if self._own_loss is None:
            return self._losses_and_slopes(outputs, y, label_smoothing=label_smoothing)
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            losses = self._own_losses(outputs, y)
            (slopes,) = torch.autograd.grad(losses.sum(), outputs)
        return losses.detach(), slopes

    @abstractmethod
    def _losses_and_slopes(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Those of the task's own loss."""

    def _own_losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The means [...] by the loss that takes the place of the task's."""
        assert self._own_loss is not None
        one = self._own_loss
        of_all = one if outputs.dim() == 2 else torch.vmap(one, randomness="different")
        return of_all(*self.seen(outputs, y))

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        """What `metrics` takes, to be added up over batches: [..., sums]."""
        if self._own_loss is None:
            loss = self.example_losses(outputs, y).sum(-1, dtype=torch.float64)
        else:
            loss = self._own_losses(outputs, y).double() * outputs.shape[-2]
        return torch.stack([loss, *self.counts(outputs, y)], -1)

    def metrics(self, sums: Tensor, n: int | Tensor) -> dict[str, Tensor]:
        """Loss and measures [...] of n examples, by `sums` over them."""
        loss, *counts = sums.unbind(-1)
        measured = self.measured(counts, n)
        return {"loss": loss / n, **dict(zip(KINDS[self.name].measures, measured, strict=True))}

    def facts(self) -> dict[str, Any]:
        """What it is made of beside its names, for JSON."""
        return {"name": self.name}

    @classmethod
    def stacked(cls, tasks: Sequence[Self]) -> Self:
        """The task of a stack whose members have these."""
        return tasks[0]

    def keep(self, members: list[int]) -> None:
        """Go on with these members of a stack alone."""


@final
class Classification(Task):
    """One of several classes, by logits; one output is the logit of the second of two.

    With `class_weights`, [classes] or [members, classes] of a stack, an example's loss is
    multiplied by that of its class.
    """

    name = "classification"
    weights: Tensor | None

    def __init__(
        self,
        names: Sequence[str] = (),
        *,
        class_weights: Tensor | Sequence[float] | None = None,
        own_loss: Loss | None = None,
    ) -> None:
        super().__init__(names, own_loss=own_loss)
        weights = None if class_weights is None else torch.as_tensor(class_weights)
        self.register_buffer("weights", weights, persistent=False)

    @staticmethod
    def balanced(y: Tensor, *, classes: int) -> list[float]:
        """Weights by which all classes of labels y [n] count the same, and an example 1 in mean."""
        counts = y.bincount(minlength=classes)
        return [len(y) / (classes * n) if n else 1.0 for n in counts.tolist()]

    def example_losses(self, outputs: Tensor, y: Tensor, *, label_smoothing: Any = 0.0) -> Tensor:
        """Cross-entropy."""
        found = losses.example_losses(outputs, y, label_smoothing=label_smoothing)
        return found if self.weights is None else found * self.weights.gather(-1, y)

    def _loss(self, outputs: Tensor, y: Tensor, *, label_smoothing: float) -> Tensor:
        return losses.mean_loss(outputs, y, label_smoothing=label_smoothing, weights=self.weights)

    def loss_and_slope(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: float = 0.0, share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """By the kernels alone."""
        if self.weights is None:
            return losses.loss_and_slope(outputs, y, label_smoothing=label_smoothing, share=share)
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            loss = share * self.loss(outputs, y, label_smoothing=label_smoothing)
            (slope,) = torch.autograd.grad(loss, outputs)
        return loss.detach(), slope

    def _losses_and_slopes(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """By the kernels alone."""
        weights = None if self.weights is None else self.weights.gather(-1, y)
        return losses.losses_and_slopes(
            outputs, y, label_smoothing=label_smoothing, weights=weights
        )

    def counts(self, outputs: Tensor, y: Tensor) -> list[Tensor]:
        """How many are right."""
        return [(losses.labels(outputs) == y).sum(-1).double()]

    def measured(self, counts: Sequence[Tensor], n: int | Tensor) -> Sequence[Tensor]:
        """Their share."""
        return [counts[0] / n]

    def predicted(self, outputs: Tensor) -> Tensor:
        """The most probable class [n]."""
        return losses.labels(outputs)

    def said(self, outputs: Tensor) -> Tensor:
        """The probability of every class [n, classes]."""
        return losses.probabilities(outputs)

    def answers(self, outputs: Tensor) -> dict[str, Any]:
        """The label, and the probability of every class."""
        probability = self.said(outputs)
        label = [self.names[k] for k in probability.argmax(1)]
        return {"label": label, **_columns(self.names, probability)}

    def told(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [n, classes] and labels."""
        return self.said(outputs), y

    def facts(self) -> dict[str, Any]:
        """Name, and weights if there are any."""
        weights = {} if self.weights is None else {"class_weights": self.weights.tolist()}
        return {"name": self.name, **weights}

    def seen(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A logit for every class, that of the first of two being 0; labels, or probabilities."""
        if outputs.shape[-1] > 1:
            return outputs, y
        y = torch.stack([1 - y, y], -1) if y.is_floating_point() else y
        return torch.cat([torch.zeros_like(outputs), outputs], -1), y

    @classmethod
    def stacked(cls, tasks: Sequence[Self]) -> Self:
        """Each member's weights, which are 1 where it has none."""
        if all(task.weights is None for task in tasks):
            return tasks[0]
        even = torch.ones(len(tasks[0].names))
        weights = [even if task.weights is None else task.weights for task in tasks]
        own_loss = tasks[0]._own_loss
        return cls(tasks[0].names, class_weights=torch.stack(weights), own_loss=own_loss)

    def keep(self, members: list[int]) -> None:
        """Their weights."""
        if self.weights is not None:
            self.weights = self.weights[members]


# By name: the loss of an error, and its derivative.
_ERRORS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "mse": (torch.square, lambda e: 2 * e),
    "mae": (torch.abs, torch.sign),
    "huber": (
        lambda e: torch.where(e.abs() < 1, e.square() / 2, e.abs() - 0.5),
        lambda e: e.clamp(-1, 1),
    ),
}


@final
class Regression(Task):
    """One or several numbers; outputs stand for them less their `mean`, over their `std`.

    These are of the targets of the training part, [numbers], or [members, 1, numbers] of a stack.
    """

    name = "regression"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        names: Sequence[str],
        *,
        mean: Tensor | Sequence[float],
        std: Tensor | Sequence[float],
        loss: str = "mse",
        own_loss: Loss | None = None,
    ) -> None:
        super().__init__(names, own_loss=own_loss)
        self._kind = loss
        self._value, self._slope = _ERRORS[loss]
        for name, values in {"mean": mean, "std": std}.items():
            self.register_buffer(name, torch.as_tensor(values).float(), persistent=False)

    @classmethod
    def of(cls, names: Sequence[str], y: Tensor, **options: Any) -> Self:
        """For the targets y [n, ...] of the training part."""
        std, mean = torch.std_mean(_column(y).cpu().double(), 0, correction=0)
        return cls(names, mean=mean, std=torch.where(std > 0, std, 1.0), **options)

    def _error(self, outputs: Tensor, y: Tensor) -> Tensor:
        return outputs - self._standardised(outputs, y)

    def _standardised(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (_like(y, outputs) - self.mean) / self.std

    def example_losses(self, outputs: Tensor, y: Tensor, *, label_smoothing: Any = 0.0) -> Tensor:
        """The mean over the numbers."""
        return self._value(self._error(outputs, y)).mean(-1)

    def loss_and_slope(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: float = 0.0, share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """By a formula."""
        error = self._error(outputs, y)
        return self._value(error).mean() * share, self._slope(error) * (share / error.numel())

    def _losses_and_slopes(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """By a formula."""
        error = self._error(outputs, y)
        return self._value(error).mean((1, 2)), self._slope(error) / error[0].numel()

    def counts(self, outputs: Tensor, y: Tensor) -> list[Tensor]:
        """Sums of `|error|`, error², target and target², of each number in standard deviations."""
        target = self._standardised(outputs, y).double()
        error = outputs - target
        kept = (error.abs(), error.square(), target, target.square())
        return [part for sums in kept for part in sums.sum(-2).unbind(-1)]

    def measured(self, counts: Sequence[Tensor], n: int | Tensor) -> Sequence[Tensor]:
        """R², MAE and RMSE in the targets' units: the mean of several numbers' own, each."""
        shape = (4, self.mean.shape[-1])
        mae, square, mean, around = torch.stack(tuple(counts), -1).unflatten(-1, shape).unbind(-2)
        spread = around - mean.square() / n
        # Of targets that are all the same, as scikit-learn has it: 1 if they are told, else 0.
        r2 = torch.where(spread > 0, 1 - square / spread, (square == 0).double())
        std = self.std.squeeze(-2) if self.std.dim() > 1 else self.std
        rmse = (square / n).sqrt() * std
        return [each.mean(-1) for each in (r2, mae / n * std, rmse)]

    def predicted(self, outputs: Tensor) -> Tensor:
        """Numbers in their own units [n, numbers], float64."""
        return outputs.double() * self.std.double() + self.mean.double()

    def said(self, outputs: Tensor) -> Tensor:
        """As predicted."""
        return self.predicted(outputs)

    def answers(self, outputs: Tensor) -> dict[str, Any]:
        """A column for each number."""
        return _columns(self.names, self.predicted(outputs))

    def told(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers in their own units, [n] of one, float64."""
        told = self.predicted(outputs)
        return (told[:, 0] if told.shape[1] == 1 else told), y.view(len(y), -1).squeeze(1).double()

    def seen(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs, and standardised targets of their shape."""
        return outputs, self._standardised(outputs, y)

    def facts(self) -> dict[str, Any]:
        """Name, loss, and the targets' mean and deviation."""
        scale = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        return {"name": self.name, "loss": self._kind, **scale}

    @classmethod
    def stacked(cls, tasks: Sequence[Self]) -> Self:
        """Each member's scale."""
        means, stds = (
            torch.stack([getattr(t, k) for t in tasks])[:, None] for k in ("mean", "std")
        )
        first = tasks[0]
        return cls(first.names, mean=means, std=stds, loss=first._kind, own_loss=first._own_loss)

    def keep(self, members: list[int]) -> None:
        """Their scales."""
        self.mean, self.std = self.mean[members], self.std[members]


@final
class Multilabel(Task):
    """Labels of which any may hold at once, by the logit of each; targets are 0 or 1."""

    name = "multilabel"

    def example_losses(self, outputs: Tensor, y: Tensor, *, label_smoothing: Any = 0.0) -> Tensor:
        """Cross-entropy, the mean over the labels."""
        if isinstance(label_smoothing, Tensor):
            label_smoothing = label_smoothing.unsqueeze(-1)
        return losses.label_losses(outputs, _like(y, outputs), label_smoothing).mean(-1)

    def _loss(self, outputs: Tensor, y: Tensor, *, label_smoothing: float) -> Tensor:
        y = _like(y, outputs)
        return losses.mean_label_loss(outputs, y, label_smoothing=label_smoothing)

    def loss_and_slope(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: float = 0.0, share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """By a formula."""
        smoothing = outputs.new_full((1, 1), label_smoothing)
        loss, slope = self._losses_and_slopes(outputs[None], y[None], label_smoothing=smoothing)
        return loss[0] * share, slope[0] * share

    def _losses_and_slopes(
        self, outputs: Tensor, y: Tensor, *, label_smoothing: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """By a formula: the gradient by a logit is the difference of probability and target."""
        smoothing = 0.0 if label_smoothing is None else label_smoothing.unsqueeze(-1)
        y = _like(y, outputs)
        loss = losses.label_losses(outputs, y, smoothing).mean((1, 2))
        target = y * (1 - smoothing) + smoothing / 2
        return loss, (outputs.sigmoid() - target) / outputs[0].numel()

    def counts(self, outputs: Tensor, y: Tensor) -> list[Tensor]:
        """The share of each example's labels that are right, and how many have all right."""
        right = (outputs > 0) == (_like(y, outputs) > 0)
        return [right.double().mean(-1).sum(-1), right.all(-1).sum(-1).double()]

    def measured(self, counts: Sequence[Tensor], n: int | Tensor) -> Sequence[Tensor]:
        """Their shares."""
        return [count / n for count in counts]

    def predicted(self, outputs: Tensor) -> Tensor:
        """0 or 1 for each label [n, labels]."""
        return (outputs > 0).long()

    def said(self, outputs: Tensor) -> Tensor:
        """The probability of each label [n, labels]."""
        return outputs.sigmoid()

    def answers(self, outputs: Tensor) -> dict[str, Any]:
        """The labels that hold, with a space between, and the probability of each."""
        held = [" ".join(compress(self.names, row)) for row in (outputs > 0).tolist()]
        return {"labels": held, **_columns(self.names, self.said(outputs))}

    def told(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and labels [n, labels]."""
        return self.said(outputs), _like(y, outputs).long()

    def seen(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels, both [n, labels]."""
        return outputs, _like(y, outputs)


def _like(y: Tensor, outputs: Tensor) -> Tensor:
    """Targets with a last dimension, if they are of one number."""
    return y if y.dim() == outputs.dim() else y.unsqueeze(-1)


def _column(y: Tensor) -> Tensor:
    """Targets [n, numbers] of [n], if there is one number."""
    return y if y.dim() > 1 else y.unsqueeze(-1)


def _columns(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    return dict(zip(names, values.double().numpy().T, strict=True))


TASKS: Mapping[str, type[Task]] = {
    task.name: task for task in (Classification, Regression, Multilabel)
}


def read(facts: Mapping[str, Any], *, own_loss: Loss | None = None) -> Task:
    """The task that the `facts` beside a stored network describe; of early ones, classes.

    Raises `UserError` for a module of one's own that makes no such outputs.
    """
    described = facts.get("task", {"name": Classification.name})
    if described is None:
        raise UserError("run: its module does not return [batch, outputs], and cannot be asked")
    described = dict(described)
    kind = TASKS[described.pop("name")]
    return kind(facts["classes"] or facts["targets"], own_loss=own_loss, **described)
