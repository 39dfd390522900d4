"""The network against NumPy, its sizes, its randomness, and what is read back from disk."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.numpy import load_file
from torch import nn

from perceptrail.activations import ACTIVATIONS
from perceptrail.linear import Linear
from perceptrail.model import MLP, Dropout, GaussianNoise

HIDDEN = [[], [7], [7, 5], [3, 3, 3, 3]]
NORMS = [None, "batch", "layer"]


def network(seed=0, *, inputs=4, outputs=3, hidden=(7, 5), **options):
    torch.manual_seed(seed)
    return MLP(inputs, outputs, hidden=hidden, **options)


def trained(**options):
    """A network in training mode of which no parameter or buffer is as it was made."""
    made = network(**options)
    rng = torch.Generator().manual_seed(1)
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=rng) / 4)
    return made


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("norm", NORMS)
def test_sizes(hidden, norm):
    made = network(hidden=hidden, norm=norm)
    widths = [4, *hidden, 3]
    fans = list(pairwise(widths))
    assert made(torch.randn(6, 4)).shape == (6, 3)
    assert [tuple(w.shape) for w in made.weights] == [(out, into) for into, out in fans]
    linear = sum((into + 1) * out for into, out in fans)
    assert made.parameter_count == linear + (2 * sum(hidden) if norm else 0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_it_computes_what_numpy_does(activation, hidden):
    options = {"activation": activation, "mean": 0.3, "std": 2.0}
    made = trained(hidden=hidden, dropout=0.5, input_dropout=0.5, **options).eval()
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    signal = (x.astype(float) - 0.3) / 2.0
    linear = [layer for layer in made.layers if isinstance(layer, nn.Linear)]
    for depth, layer in enumerate(linear):
        if depth > 0:
            signal = ACTIVATIONS[activation].f(signal)
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        signal = signal @ weight.T + bias
    assert_allclose(made(torch.from_numpy(x)).detach().numpy(), signal, rtol=1e-4, atol=1e-5)


def test_raw_inputs_are_standardised():
    x = torch.rand(50, 4) * 255
    mean, std = float(x.mean()), float(x.std())
    raw = network(mean=mean, std=std)
    standardised = network()
    torch.testing.assert_close(raw(x), standardised((x - mean) / std))
    assert not torch.allclose(raw(x), standardised(x))


@pytest.mark.parametrize(("norm", "axis"), [("batch", 0), ("layer", 1)])
def test_a_norm_evens_out_the_hidden_signal_before_the_activation(norm, axis):
    made = network(hidden=[64, 64], norm=norm, activation="tanh")
    seen = []
    for layer in made.layers:
        if isinstance(layer, nn.Tanh):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made(10 * torch.randn(256, 4) + 5)
    assert len(seen) == 2
    for z in seen:
        torch.testing.assert_close(z.mean(axis), torch.zeros(z.shape[1 - axis]), atol=1e-4, rtol=0)
        variance = z.var(axis, correction=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-2, rtol=0)


def test_a_batch_norm_does_not_see_the_rest_of_the_batch_once_trained():
    made = trained(norm="batch").eval()
    x = torch.randn(8, 4)
    torch.testing.assert_close(made(x)[:1], made(x[:1]))


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_hidden_weights_start_with_the_gain_of_the_activation_and_biases_at_zero(activation):
    made = network(hidden=[300, 300], activation=activation)
    weight = made.weights[1].detach().numpy()
    std = ACTIVATIONS[activation].gain / 300**0.5
    # The sample deviation of n normal numbers strays by 1/sqrt(2n) of itself: 0.24%.
    assert weight.std() == pytest.approx(std, rel=0.01)
    assert weight.mean() == pytest.approx(0, abs=5 * std / 300)
    within = (np.abs(weight) < std).mean()
    assert within == pytest.approx(0.6827, abs=0.01)  # normal, not uniform
    for layer in made.layers:
        if isinstance(layer, nn.Linear):
            assert not layer.bias.any()


def test_weights_follow_from_the_seed():
    one, same, other = network(0).weights, network(0).weights, network(1).weights
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("hidden", HIDDEN)
def test_set_dropout_leaves_the_rate_of_the_inputs(hidden):
    made = network(hidden=hidden, dropout=0.4, input_dropout=0.1)
    assert rates(made) == [0.1, *[0.4] * len(hidden)]
    made.set_dropout(0.7)
    assert rates(made) == [0.1, *[0.7] * len(hidden)]


def rates(made):
    return [layer.p for layer in made.layers if isinstance(layer, nn.Dropout)]


def test_dropout_is_as_strong_as_set_and_only_while_training():
    made = network(hidden=[1000], activation="sigmoid", dropout=0.1)
    made.set_dropout(0.75)
    hidden = made.layers[:-1]
    x = torch.randn(20, 4)
    torch.manual_seed(0)
    dropped = hidden(x)
    # Binomial of 20,000: standard deviation 0.3%.
    assert float((dropped == 0).double().mean()) == pytest.approx(0.75, abs=0.015)
    kept = dropped != 0
    whole = hidden.eval()(x)
    torch.testing.assert_close(dropped[kept], 4 * whole[kept])
    assert whole.all()


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1001, 3)])
def test_dropout_scales_up_what_it_keeps_and_the_gradient_alike(rate, shape):
    dropout = Dropout(rate)
    x = torch.randn(shape, requires_grad=True)
    torch.manual_seed(0)
    dropped = dropout(x)
    dropped.sum().backward()
    kept = dropped != 0
    torch.testing.assert_close(x.grad, kept / (1 - rate))
    torch.testing.assert_close(dropped, x * kept / (1 - rate))
    assert dropout.eval()(x) is x


def test_dropout_keeps_every_value_as_often_and_none_by_its_neighbour():
    torch.manual_seed(0)
    kept = (Dropout(0.3)(torch.ones(250_000, 8)) > 0).double()
    # Binomial of 250,000: standard deviation 0.09%; the same of a correlation is 0.2%.
    assert_allclose(kept.mean(0), 0.7, atol=0.005)
    assert_allclose(np.corrcoef(kept.T), np.eye(8), atol=0.01)
    assert_allclose(np.corrcoef(kept[1:, 0], kept[:-1, 0])[0, 1], 0, atol=0.01)


@pytest.mark.parametrize("norm", NORMS)
def test_noise_comes_before_every_activation_and_on_the_inputs_and_only_while_training(norm):
    made = network(hidden=[50, 50], norm=norm, activation="tanh", noise=0.3, input_noise=2.0)
    quiet = network(hidden=[50, 50], norm=norm, activation="tanh")
    noises = [layer for layer in made.layers if isinstance(layer, GaussianNoise)]
    assert [type(b) for a, b in pairwise(made.layers) if a in noises] == [Linear, *2 * [nn.Tanh]]
    x = torch.randn(400, 4)
    assert torch.equal(made.eval()(x), quiet.eval()(x))
    added = []
    for layer in noises:
        layer.register_forward_hook(lambda _, inputs, output: added.append(output - inputs[0]))
    with torch.no_grad():
        made.train()(x)
    for noise, std in zip(added, [2.0, 0.3, 0.3], strict=True):
        # Of n = 1,600 or 20,000 normal numbers: mean strays by std/sqrt(n), std by that over 1.4.
        assert float(noise.mean()) == pytest.approx(0, abs=5 * std / noise.numel() ** 0.5)
        assert float(noise.std()) == pytest.approx(std, rel=4 / noise.numel() ** 0.5)


def test_without_noise_there_is_no_layer_for_it():
    layers = network(norm="batch").layers
    assert not any(isinstance(layer, GaussianNoise) for layer in layers)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_what_was_saved_is_read_back_bit_for_bit(tmp_path, norm, activation):
    options = {"dropout": 0.3, "input_dropout": 0.1, "mean": 0.1307, "std": 0.3081, "noise": 0.2}
    made = trained(norm=norm, activation=activation, **options)
    made.save(tmp_path / "new" / "model", classes=["a", "b", "c"], shape=[2, 2])
    loaded, facts = MLP.load(tmp_path / "new" / "model")
    assert facts == {"classes": ["a", "b", "c"], "shape": [2, 2]}
    assert loaded.architecture == made.architecture
    assert loaded.state_dict().keys() == made.state_dict().keys()
    for name, value in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training
    x = torch.randn(9, 4)
    assert torch.equal(loaded(x), made.eval()(x))


def test_a_saved_model_can_be_read_without_this_package(tmp_path):
    made = trained(hidden=[7], activation="tanh", mean=0.5, std=2.0)
    made.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    stored = json.loads((tmp_path / "model.json").read_text())["architecture"]
    weights = list(load_file(tmp_path / "model.safetensors").values())
    w1, w2 = sorted((w for w in weights if w.ndim == 2), key=lambda w: -len(w))
    b1, b2 = sorted((w for w in weights if w.ndim == 1), key=lambda w: -len(w))
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    logits = np.tanh((x - stored["mean"]) / stored["std"] @ w1.T + b1) @ w2.T + b2
    ours = made.eval()(torch.from_numpy(x)).detach().numpy()
    assert_allclose(ours, logits, rtol=1e-4, atol=1e-5)
