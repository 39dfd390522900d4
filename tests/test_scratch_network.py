"""The network in NumPy: PyTorch's weights step by step, and what fit promises."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F

from perceptrail.activations import ACTIVATIONS
from perceptrail.data import sets, synthetic
from perceptrail.errors import UserError
from perceptrail.model import MLP
from perceptrail.scratch.network import Network, batches
from perceptrail.scratch.optimizers import SGD, Adam

PAIRS = {
    "sgd": (lambda: SGD(0.1), torch.optim.SGD, {"lr": 0.1}),
    "momentum": (
        lambda: SGD(0.05, momentum=0.9),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9},
    ),
    "adam": (lambda: Adam(0.01), torch.optim.Adam, {"lr": 0.01}),
}


def spirals(n=200, seed=0):
    x, y = synthetic.spirals(n, arms=3, noise=0.02, seed=seed)
    return x.astype(np.float64), y


def mlp_of(network, activation):
    """PyTorch's network with the same weights, in float64."""
    widths = network.widths
    twin = MLP(widths[0], widths[-1], hidden=widths[1:-1], activation=activation).double()
    linear = [layer for layer in twin.layers if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for layer, (w, b) in zip(linear, network.layers, strict=True):
            layer.weight.copy_(torch.tensor(w.T))
            layer.bias.copy_(torch.tensor(b))
    return twin, linear


@pytest.mark.parametrize("l2", [0.0, 0.01])
@pytest.mark.parametrize("optimizer", PAIRS)
def test_a_hundred_steps_end_at_pytorch_s_weights(optimizer, l2):
    x, y = spirals()
    make, torch_class, options = PAIRS[optimizer]
    network = Network([2, 16, 12, 3], activation="tanh", l2=l2, seed=3)
    start = network.theta.copy()
    twin, linear = mlp_of(network, "tanh")
    groups = [
        {"params": [layer.weight for layer in linear], "weight_decay": l2},
        {"params": [layer.bias for layer in linear], "weight_decay": 0.0},
    ]
    theirs = torch_class(groups, **options)

    network.fit(x, y, optimizer=make(), epochs=25, batch_size=50, seed=7)
    rng = np.random.default_rng(7)
    for _ in range(25):
        for batch in batches(len(x), 50, rng):
            theirs.zero_grad()
            F.cross_entropy(twin(torch.tensor(x[batch])), torch.tensor(y[batch])).backward()
            theirs.step()

    assert np.abs(network.theta - start).max() > 0.1
    for layer, (w, b) in zip(linear, network.layers, strict=True):
        assert_allclose(w, layer.weight.detach().numpy().T, rtol=0, atol=1e-10)
        assert_allclose(b, layer.bias.detach().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_start_with_the_variance_that_the_model_gives_them(activation):
    widths = [300, 400, 200]
    network = Network(widths, activation=activation)
    twin = MLP(300, 200, hidden=[400], activation=activation)
    for (m, n), (w, b), theirs in zip(pairwise(widths), network.layers, twin.weights, strict=True):
        assert w.shape == (m, n)
        assert w.std() == pytest.approx(theirs.std().item(), rel=0.02)
        assert abs(w.mean()) < 4 * w.std() / w.size**0.5
        assert not b.any()


def test_layers_are_views_that_cover_the_parameters_once():
    network = Network([3, 5, 4, 2])
    network.theta[...] = np.arange(len(network.theta))
    parts = [part.ravel() for layer in network.layers for part in layer]
    assert_allclose(np.concatenate(parts), network.theta)
    network.layers[1][0][...] = -1
    assert (network.theta == -1).sum() == 5 * 4


@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 2), ("binary_cross_entropy", 1)])
def test_it_learns_xor(loss, outputs):
    x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = np.array([0, 1, 1, 0])
    network = Network([2, 8, outputs], activation="tanh", loss=loss)
    network.fit(x, y, optimizer=Adam(0.05), epochs=300, batch_size=4)
    loss_value, accuracy = network.evaluate(x, y)
    assert accuracy == 1
    assert loss_value < 0.05
    assert_allclose(network.predict(x)[:, -1], y, atol=0.1)


def test_without_a_hidden_layer_xor_stays_out_of_reach():
    x, y = synthetic.xor(400, noise=0.1, seed=0)
    network = Network([2, 1], loss="binary_cross_entropy")
    network.fit(x, y, optimizer=Adam(0.05), epochs=50, batch_size=50)
    assert network.evaluate(x, y)[1] <= 0.75


def test_masks_keep_the_mean_and_drop_the_rate():
    network = Network([3, 400, 300, 2], dropout=0.3)
    masks = network.draw_masks(500, np.random.default_rng(0))
    assert [mask.shape for mask in masks] == [(500, 400), (500, 300)]
    for mask in masks:
        assert set(np.unique(mask)) == {0, 1 / 0.7}
        assert mask.mean() == pytest.approx(1, abs=0.01)


def test_dropout_is_for_training_alone():
    x, y = spirals()
    network = Network([2, 32, 3], dropout=0.5)
    network.fit(x, y, optimizer=Adam(0.01), epochs=2)
    plain = Network([2, 32, 3])
    plain.theta[...] = network.theta
    assert (network.predict(x) == plain.predict(x)).all()


def test_batches_hold_every_example_once_in_a_new_order():
    rng = np.random.default_rng(0)
    first, second = (list(batches(10, 4, rng)) for _ in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2]
    for order in (first, second):
        assert sorted(np.concatenate(order)) == list(range(10))
    assert (np.concatenate(first) != np.concatenate(second)).any()


def test_the_loss_of_an_epoch_is_the_mean_over_its_examples():
    x, y = spirals(130)
    network = Network([2, 3], l2=0.1)
    z = network.forward(x)
    still = SGD(0.0)
    (row,) = network.fit(x, y, optimizer=still, epochs=1, batch_size=64)
    assert row["train/loss"] == pytest.approx(network.loss(z, y), rel=1e-12)


def overfitting(**options):
    """Ten noisy labels to learn by heart, and the true ones to fail on."""
    rng = np.random.default_rng(0)
    x, held_out = rng.normal(size=(10, 5)), rng.normal(size=(200, 5))
    y, truth = rng.integers(2, size=10), (held_out[:, 0] > 0).astype(int)
    network = Network([5, 32, 2], seed=1)
    history = network.fit(
        x, y, optimizer=Adam(0.01), epochs=60, validation=(held_out, truth), **options
    )
    return network, history, (held_out, truth)


def test_early_stopping_restores_the_best_parameters_and_stops_after_its_patience():
    network, history, validation = overfitting(patience=4)
    _, endless, _ = overfitting()
    losses = [row["val/loss"] for row in history]
    best = int(np.argmin(losses))
    assert history == endless[: len(history)]
    assert len(history) == best + 1 + 4 < len(endless)
    assert network.evaluate(*validation) == (losses[best], history[best]["val/acc"])
    assert losses[-1] > losses[best]


def test_patience_that_is_never_used_up_restores_the_best_all_the_same():
    network, history, validation = overfitting(patience=60)
    losses = [row["val/loss"] for row in history]
    assert len(losses) == 60
    assert network.evaluate(*validation)[0] == min(losses) < losses[-1]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"activation": "rleu"}, r"activation=rleu: must be one of .*did you mean 'relu'"),
        ({"loss": "hinge"}, r"loss=hinge: must be one of cross_entropy, binary_cross_entropy"),
    ],
)
def test_unknown_names_are_refused_with_what_is_allowed(choice, message):
    with pytest.raises(UserError, match=message):
        Network([2, 2], **choice)


def test_patience_needs_validation_examples():
    with pytest.raises(UserError, match="patience=3: early stopping needs validation"):
        Network([2, 3]).fit(*spirals(), optimizer=SGD(0.1), epochs=1, patience=3)


@pytest.mark.slow
def test_mnist_in_eight_epochs(mnist_dir):
    x, y = sets.mnist(dir=mnist_dir).train()
    x = (x - x.mean()) / x.std()
    stay, held_out = sets.split(y, held_out=10_000, seed=0)
    network = Network([784, 256, 128, 10], dropout=0.2, dtype=np.float32)
    for rate, epochs in ((1e-3, 6), (1e-4, 2)):  # at one rate, epochs differ by half a point
        network.fit(x[stay], y[stay], optimizer=Adam(rate), epochs=epochs)
    assert network.evaluate(x[held_out], y[held_out])[1] >= 0.975
