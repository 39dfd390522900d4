"""The loss of classes and its gradient, and the probabilities that outputs stand for."""

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


def example_losses(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy [..., n] of logits [..., n, outputs] against labels [..., n].

    One output means two classes, its sigmoid being the probability of the second; more outputs are
    a softmax. Label smoothing mixes the labels with the uniform distribution, alike for both.
    """
    if logits.shape[-1] > 1:
        losses = F.cross_entropy(
            logits.flatten(0, -2), y.flatten(), label_smoothing=label_smoothing, reduction="none"
        )
        return losses.view(y.shape)
    return _binary_cross_entropy(logits[..., 0], _smoothed(y, label_smoothing, logits.dtype))


def _smoothed(y: Tensor, label_smoothing: Tensor | float, dtype: torch.dtype) -> Tensor:
    """The probability of the second of two classes, as it is to be learned."""
    return y.to(dtype) * (1 - label_smoothing) + label_smoothing / 2


def label_losses(logits: Tensor, y: Tensor, label_smoothing: Tensor | float = 0.0) -> Tensor:
    """Cross-entropy of each logit against a target of 0 or 1, of the same shape."""
    return _binary_cross_entropy(logits, _smoothed(y, label_smoothing, logits.dtype))


def _binary_cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    """That of logits and probabilities of the same shape, on a processor in a fraction of PyTorch's
    time, whose log1p goes number by number there.

    It is max(z, 0) - z target + log(1 + e), e = exp(-|z|), the logarithm being that of u, which is
    1 + e rounded, less what the rounding has added: ((u - 1) - e) / u.
    """
    if z.device.type != "cpu":
        return F.binary_cross_entropy_with_logits(z, target, reduction="none")
    e = z.abs().neg_().exp_()
    u = e + 1
    log1p = u.log().addcdiv_((u - 1).sub_(e), u, value=-1)
    return z.clamp(min=0).addcmul_(z, target, value=-1).add_(log1p)


def mean_loss(
    logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """The mean of `example_losses`, by the fused operation; times `weights` of the labels, if any.

    Instead of labels, y may hold probabilities: of each class [n, outputs], or, with one output, of
    the second class [n].
    """
    kind = "mean" if weights is None else "none"
    if logits.shape[1] > 1:
        loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing, reduction=kind)
    else:
        target = _smoothed(y, label_smoothing, logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    return (loss if weights is None else loss * weights[y]).mean()


def mean_label_loss(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """The mean of `label_losses`, by the fused operation."""
    target = _smoothed(y, label_smoothing, logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target)


def loss_and_slope(
    logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A `share` of `mean_loss`, and its gradient by the logits [n, outputs]."""
    whole = logits.new_full((), share)
    if logits.shape[1] == 1:
        loss, slope = of_two(logits, _smoothed(y, label_smoothing, logits.dtype), whole)
    elif not (label_smoothing or y.is_floating_point()):
        loss, slope = of_classes(logits, y, whole)
    else:
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            loss = mean_loss(logits, y, label_smoothing=label_smoothing)
            (slope,) = torch.autograd.grad(loss, logits, whole)
    return loss.detach() if share == 1 else loss.detach() * share, slope


# The usual losses, and the gradients of a `share` of them, by autograd's kernels alone.


def of_classes(logits: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """By a softmax of logits [n, classes], for labels [n]."""
    mean, no_label = 1, -100  # ATen's reduction; a label that it leaves out
    log = torch.log_softmax(logits, 1)
    loss, n = aten.nll_loss_forward(log, y, None, mean, no_label)
    slope = aten.nll_loss_backward(share, log, y, None, mean, no_label, n)
    return loss, aten._log_softmax_backward_data(slope, log, 1, log.dtype)


def of_two(logits: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """By a sigmoid of logits [n, 1], for probabilities [n]."""
    z, each = logits[:, 0], 0  # ATen's reduction: none
    loss = torch.binary_cross_entropy_with_logits(z, target, None, None, each).mean()
    return loss, z.sigmoid().sub_(target).mul_(share / len(target)).unsqueeze(1)


def losses_and_slopes(
    logits: Tensor,
    y: Tensor,
    *,
    label_smoothing: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Members' mean losses [members], and their gradients by the logits [members, n, outputs].

    The gradient by a logit is the difference of its probability and its target, divided by n; both
    are multiplied by the examples' `weights` [members, n], if there are any.
    """
    n, outputs = logits.shape[1:]
    if outputs == 1:
        smoothing = 0.0 if label_smoothing is None else label_smoothing
        z, target = logits[..., 0], _smoothed(y, smoothing, logits.dtype)
        losses, slopes = _binary_cross_entropy(z, target), z.sigmoid().sub_(target)
        losses, slopes = losses.unsqueeze(1), slopes.unsqueeze(1)
    else:
        # A softmax over few classes takes a quarter of the time where they are not side by side.
        log = logits.mT.contiguous().log_softmax(1)
        chosen = y.unsqueeze(1)
        losses, slopes = -log.gather(1, chosen), log.exp()
        if label_smoothing is None:
            slopes.scatter_add_(1, chosen, slopes.new_full((), -1).expand_as(chosen))
        else:
            smoothing = label_smoothing.unsqueeze(2)
            even = smoothing / outputs
            losses = (1 - smoothing) * losses - smoothing * log.mean(1, keepdim=True)
            slopes.sub_(even).scatter_add_(1, chosen, (even * outputs - 1).expand_as(chosen))
    if weights is not None:
        losses, slopes = (each.mul_(weights.unsqueeze(1)) for each in (losses, slopes))
    return losses.mean((1, 2)), slopes.div_(n).mT.contiguous()


def labels(logits: Tensor) -> Tensor:
    """The most probable class [..., n] of logits [..., n, outputs]."""
    return logits.argmax(-1) if logits.shape[-1] > 1 else (logits[..., 0] > 0).long()


def probabilities(logits: Tensor) -> Tensor:
    """The probability of every class [n, classes] from logits [n, outputs]."""
    if logits.shape[1] > 1:
        return logits.softmax(1)
    second = logits[:, 0].sigmoid()
    return torch.stack([1 - second, second], 1)
