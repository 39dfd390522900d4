"""Large linear layers, by whatever products they go, against double precision."""

import pytest
import torch
from torch import nn

from perceptrail import linear
from perceptrail.linear import Linear

SHAPES = [(128, 784, 256), (64, 784, 1024), (1, 128, 128), (33, 300, 100), (4096, 64, 256)]
SHAPES += [(0, 128, 128)]


@pytest.fixture(params=[True, False], ids=["intel", "another"])
def intel(request, monkeypatch):
    """Whether products go as on a processor of Intel's."""
    monkeypatch.setattr(linear, "INTEL", request.param)
    monkeypatch.setattr(linear.by_weight, "__defaults__", (request.param,))
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "fan_in", "fan_out"), SHAPES)
def test_values_and_gradients(intel, batch, fan_in, fan_out, bias):
    torch.manual_seed(0)
    layer = Linear(fan_in, fan_out, bias=bias)
    twin = nn.Linear(fan_in, fan_out, bias=bias).double()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(batch, fan_in, requires_grad=True)
    far = x.detach().double().requires_grad_()
    to = torch.randn(batch, fan_out)
    y, expected = layer(x), twin(far)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    (y * to).sum().backward()
    (expected * to.double()).sum().backward()
    for ours, theirs in ((x, far), *zip(layer.parameters(), twin.parameters(), strict=True)):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-3)


def test_what_is_not_large_single_precision_on_the_processor_is_pytorchs(intel, monkeypatch):
    def refuse(*_):
        raise AssertionError("not for this")

    monkeypatch.setattr(linear, "product", refuse)
    Linear(127, 128)(torch.ones(2, 127))
    Linear(128, 128).double()(torch.ones(2, 128, dtype=torch.float64))
    Linear(128, 128)(torch.ones(3, 2, 128))
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(128, 128)(torch.ones(2, 128)).dtype == torch.bfloat16


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="takes a processor with AVX-512"
)
@pytest.mark.parametrize(("shape", "on_intel"), [((128, 128), 0), ((1024, 512), 2)])
def test_large_ones_take_three_products(intel, monkeypatch, shape, on_intel):
    """Of oneDNN; on Intel's processors MKL has the gradient by the weight, and smaller layers."""
    count = []

    def counted(*given):
        count.append(len(given))
        return product(*given)

    product = linear.product
    monkeypatch.setattr(linear, "product", counted)
    Linear(*shape)(torch.ones(2, shape[0], requires_grad=True)).sum().backward()
    assert len(count) == (on_intel if intel else 3)


def test_a_wrong_width_is_said_as_pytorch_says_it():
    with pytest.raises(RuntimeError, match=r"2x100 and 128x128"):
        Linear(128, 128)(torch.ones(2, 100))


def test_the_same_twice():
    torch.manual_seed(0)
    layer, x = Linear(784, 256), torch.randn(128, 784)
    assert torch.equal(layer(x), layer(x))
