"""The chain rule by kernels alone against autograd, to the bit."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from perceptrail.activations import ACTIVATIONS
from perceptrail.gradient import Gradient
from perceptrail.linear import is_large
from perceptrail.losses import loss_and_slope, losses_and_slopes, mean_loss
from perceptrail.model import MLP, NORMS

NOISY = {"dropout": 0.4, "input_dropout": 0.1, "noise": 0.3, "input_noise": 0.2}

pytestmark = pytest.mark.usefixtures("one_thread")


def batch(inputs: int, classes: int, n: int = 24) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(n, inputs), torch.randint(classes, (n,))


def assert_same(network: MLP, x: Tensor, y: Tensor, *, smoothing: float = 0.0) -> None:
    """Three batches through both, so that running statistics count; gradients add up."""
    twin = copy.deepcopy(network)
    gradient = Gradient(network, partial(loss_and_slope, label_smoothing=smoothing))
    for seed in range(3):
        torch.manual_seed(seed)
        x_ = x.clone().requires_grad_()
        expected = mean_loss(twin(x_), y, label_smoothing=smoothing)
        expected.backward()
        torch.manual_seed(seed)
        loss, by_inputs = gradient.by_inputs(x, y) if seed else (gradient(x, y), x_.grad)
        assert torch.equal(loss, expected)
        assert torch.equal(by_inputs, x_.grad)
        for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
        for ours, theirs in zip(network.buffers(), twin.buffers(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_norm(activation: str, norm: str | None, classes: int) -> None:
    torch.manual_seed(0)
    outputs = 1 if classes == 2 else classes
    options = {"activation": activation, "norm": norm, "mean": 0.4, "std": 0.3}
    network = MLP(7, outputs, hidden=[9, 1, 4], **options, **NOISY)
    assert_same(network, *batch(7, classes))


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.double(),
        lambda network: network.weights[0].requires_grad_(False),
        lambda network: network.weights[0].register_hook(lambda gradient: gradient),
        lambda network: network.layers[0].register_forward_hook(lambda *_: None),
        lambda network: network.layers[1].register_full_backward_hook(lambda *_: None),
        lambda network: network.register_forward_pre_hook(lambda *_: None),
        lambda network: network.weights[0].register_post_accumulate_grad_hook(lambda _: None),
        lambda network: network.layers[-1].eval(),
        lambda network: setattr(network, "__class__", type("Own", (MLP,), {"forward": None})),
    ],
)
def test_where_something_would_be_missed_it_does_not_serve(change) -> None:
    network = MLP(4, 3, hidden=[5])
    assert Gradient.suits(network)
    change(network)
    assert not Gradient.suits(network)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("hidden", [[], [1], [256], [200, 150, 30]])
def test_every_size(hidden: list[int], smoothing: float) -> None:
    torch.manual_seed(0)
    assert_same(MLP(300, 10, hidden=hidden), *batch(300, 10), smoothing=smoothing)


def test_a_share_of_the_loss_has_that_share_of_the_gradient() -> None:
    for outputs in (1, 3):
        logits, y = torch.randn(6, outputs), torch.randint(max(2, outputs), (6,))
        whole, half = loss_and_slope(logits, y), loss_and_slope(logits, y, share=0.5)
        for all_, part in zip(whole, half, strict=True):
            assert torch.equal(all_ / 2, part)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [None, [0.0, 0.2, 0.5]])
@pytest.mark.parametrize("outputs", [1, 4])
def test_the_losses_of_many_and_their_slopes(
    outputs: int, smoothing: list[float] | None, weighted: bool
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 8, outputs, requires_grad=True)
    y = torch.randint(max(2, outputs), (3, 8))
    each = zip(logits, y, smoothing or [0.0] * 3, strict=True)
    weights = torch.rand(max(2, outputs)) if weighted else None
    expected = torch.stack(
        [mean_loss(z, own, label_smoothing=s, weights=weights) for z, own, s in each]
    )
    expected.sum().backward()
    given = None if smoothing is None else torch.tensor(smoothing)[:, None]
    losses, slopes = losses_and_slopes(
        logits.detach(),
        y,
        label_smoothing=given,
        weights=None if weights is None else weights[y],
    )
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(slopes, logits.grad)


@pytest.mark.parametrize("hidden", [[], [1], [256], [200, 150, 30]])
def test_batches_of_one_agree_within_rounding(hidden: list[int]) -> None:
    torch.manual_seed(0)
    network = MLP(300, 10, hidden=hidden)
    twin, (x, y) = copy.deepcopy(network), batch(300, 10, n=1)
    loss = Gradient(network, loss_and_slope)(x, y)
    expected = mean_loss(twin(x), y)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("hidden", [[9, 4], [256, 128]])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_autocast(
    hidden: list[int], norm: str | None
) -> None:
    """Against float64; bfloat16 has 8 bits. Weights, and their gradients, stay float32."""
    torch.manual_seed(0)
    network = MLP(300, 10, hidden=hidden, norm=norm)
    gradient = Gradient(network, loss_and_slope, dtype=torch.bfloat16)
    cast, exact = copy.deepcopy(network), copy.deepcopy(network).double()
    x, y = batch(300, 10, n=64)
    mean_loss(exact(x.double()), y).backward()
    with torch.autocast("cpu", torch.bfloat16):
        mean_loss(cast(x), y).backward()
        loss, by_inputs = gradient.by_inputs(x, y)
    assert loss == pytest.approx(float(mean_loss(exact(x.double()), y).detach()), rel=0.02)
    assert by_inputs.dtype == torch.float32

    def error(other: MLP) -> float:
        pairs = zip(other.parameters(), exact.parameters(), strict=True)
        true = torch.cat([p.grad.flatten() for p in exact.parameters()])
        return float(
            torch.cat([(a.grad - b.grad).flatten() for a, b in pairs]).norm() / true.norm()
        )

    assert all(p.grad.dtype == p.dtype == torch.float32 for p in network.parameters())
    assert error(network) < 1.2 * error(cast)
    weights = [p for p in network.parameters() if p.dim() == 2]
    large = any(is_large(w, torch.bfloat16) for w in weights)  # on this processor
    assert (error(network) > 1e-4) == large, "small layers are left in float32"
    assert not large or max(hidden) == 256
