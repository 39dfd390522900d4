"""What the figures show, read back from the drawn figure, against the numbers they were given."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from perceptrail import figures


def texts(figure):
    """Every word in the figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def render(figure):
    """The figure as PNG: [height, width, 3] colours in [0, 1], the top row first."""
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return np.asarray(Image.open(file).convert("RGB")) / 255


def colour_at(figure, axes, x, y):
    """The colour drawn at a point in the coordinates of `axes`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    column, row = axes.transData.transform((x, y))
    return pixels[len(pixels) - 1 - round(row), round(column)]


def line(axes, label):
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return found.get_xydata()


def drawn_rows(n=12):
    return [
        {
            "epoch": epoch,
            "step": 100 * epoch,
            "train/loss": 1 / epoch,
            "val/loss": 0.5 + 0.01 * epoch,
            "train/acc": 1 - 0.5 / epoch,
            "val/acc": 0.9,
            "lr": 0.1 / epoch,
            "dropout": 0.2,
        }
        for epoch in range(1, n + 1)
    ]


def test_figures_need_no_pyplot():
    code = (
        "import sys, numpy as np; from perceptrail import figures; import io;"
        "figures.confusion_matrix(np.eye(2, dtype=int), classes='ab').savefig(io.BytesIO());"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_learning_curves_show_each_metric_in_its_unit_and_mark_the_best_epoch():
    rows = drawn_rows()
    figure = figures.learning_curves(rows, best_epoch=4)
    loss, accuracy, lr = figure.axes  # a dropout rate that never changes has no panel
    epochs = np.arange(1, 13)
    np.testing.assert_allclose(line(loss, "train"), np.c_[epochs, 1 / epochs])
    np.testing.assert_allclose(line(loss, "val"), np.c_[epochs, 0.5 + 0.01 * epochs])
    np.testing.assert_allclose(line(accuracy, "train"), np.c_[epochs, 100 - 50 / epochs])
    np.testing.assert_allclose(line(lr, "lr"), np.c_[epochs, 0.1 / epochs])
    assert all(set(line(axes, "best")[:, 0]) == {4} for axes in figure.axes)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss (nats)", "accuracy (%)", "learning rate"]
    assert "Epoch 4 of 12 is the best: validation loss 0.5400, accuracy 90.00%" in texts(figure)
    render(figure)


def test_learning_curves_leave_out_what_is_missing_or_not_finite():
    rows = [
        {"epoch": 1, "val/loss": 0.3},
        {"epoch": 2, "train/loss": 0.2, "val/loss": float("nan")},
        {"epoch": 3, "train/loss": float("inf")},
    ]
    figure = figures.learning_curves(rows)
    (loss,) = figure.axes
    assert line(loss, "val").tolist() == [[1, 0.3]]
    assert line(loss, "train").tolist() == [[2, 0.2]]
    render(figure)


def test_learning_curves_of_no_epoch_say_so():
    figure = figures.learning_curves([])
    assert texts(figure) == ["No epoch was finished"]
    render(figure)


@pytest.mark.parametrize(
    ("last", "scale"), [(0.1, "linear"), (0.001, "log"), (1e-9, "log"), (1e30, "log")]
)
def test_a_loss_that_goes_far_is_drawn_on_a_logarithmic_axis(last, scale):
    rows = [{"epoch": k, "val/loss": loss} for k, loss in enumerate([0.7, 0.2, last], start=1)]
    figure = figures.learning_curves(rows)
    (axes,) = figure.axes
    assert axes.get_yscale() == scale
    render(figure)
    low, high = axes.get_ylim()
    assert 3 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 15
    assert not any("$" in text for text in texts(figure))


def test_several_seeds_are_drawn_as_mean_and_standard_deviation():
    loss = np.random.default_rng(0).random((5, 7)) + 1
    rows = [{"epoch": k + 1, "val/loss": row[k]} for row in loss for k in range(7)]
    figure = figures.learning_curves(rows)
    (axes,) = figure.axes
    np.testing.assert_allclose(line(axes, "val")[:, 1], loss.mean(0))
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for epoch, (mean, sd) in enumerate(zip(loss.mean(0), loss.std(0, ddof=1), strict=True), 1):
        heights = corners[corners[:, 0] == epoch, 1]
        np.testing.assert_allclose([heights.min(), heights.max()], [mean - sd, mean + sd])
    assert "7 epochs: mean ± sd of 5 seeds" in texts(figure)


@pytest.mark.parametrize("k", [2, 10, 20])
def test_confusion_matrix_agrees_with_scikit_learn(k):
    random = np.random.default_rng(k)
    true = random.integers(k, size=900)
    predicted = np.where(random.random(900) < 0.8, true, random.integers(k, size=900))
    classes = [f"c{i}" for i in range(k)]
    counts = confusion_matrix(true, predicted)
    figure = figures.confusion_matrix(counts, classes=classes)
    axes = figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    for row, column in np.ndindex(k, k):  # the horizontal axis is what was predicted
        assert cells.get((column, row), "0") == str(counts[row, column])
    recalls = [text.get_text().strip() for text in axes.texts if text.get_text().endswith("%")]
    expected = recall_score(true, predicted, average=None)
    assert recalls == [f"{recall:.1%}" for recall in expected]
    assert axes.yaxis_inverted()
    assert axes.get_ylabel() == "true class"
    title = next(text for text in texts(figure) if text.startswith("Accuracy"))
    assert title.startswith(f"Accuracy {accuracy_score(true, predicted):.2%}")
    errors = counts - np.diag(np.diag(counts))
    worst = next(line for line in title.splitlines() if line.startswith("most often"))
    assert f"({errors.max():,}×)" in worst
    render(figure)


def test_errors_are_coloured_by_their_number_and_the_diagonal_is_not():
    counts = np.array([[5000, 0, 9], [3, 5000, 0], [0, 0, 4000]])
    figure = figures.confusion_matrix(counts, classes="abc")
    axes = figure.axes[0]

    def brightness(true, predicted):  # beside the number
        return colour_at(figure, axes, predicted - 0.35, true - 0.35).mean()

    assert brightness(0, 2) < brightness(1, 0) < brightness(0, 1)
    assert brightness(0, 0) == brightness(2, 2) > brightness(1, 0)


def test_confusion_matrix_without_errors_or_without_a_class():
    figure = figures.confusion_matrix(np.array([[7, 0], [0, 0]]), classes="ab")
    assert "Accuracy 100.00%: 0 of 7 wrong" in texts(figure)
    assert "  –" in texts(figure)
    render(figure)


def test_worst_mistakes_are_the_most_confident_of_the_wrong_ones():
    random = np.random.default_rng(0)
    n = 60
    images = random.random((n, 8, 6)).astype(np.float32)
    true, predicted = random.integers(3, size=(2, n))
    probability = random.permutation(np.linspace(0.4, 0.99, n))
    figure = figures.worst_mistakes(
        images, true=true, predicted=predicted, probability=probability, classes="abc"
    )
    wrong = [i for i in range(n) if true[i] != predicted[i]]
    expected = sorted(wrong, key=lambda i: probability[i], reverse=True)[:25]
    assert len(wrong) > 25
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert captions[::2] == [f"said {'abc'[predicted[i]]} ({probability[i]:.1%})" for i in expected]
    assert captions[1::2] == [f"is {'abc'[true[i]]}" for i in expected]
    shown = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    shown = shown[:, ~np.isnan(shown).all(0)]  # without the gaps
    shown = shown[~np.isnan(shown).all(1)]
    tiles = shown.reshape(5, 8, 5, 6).swapaxes(1, 2).reshape(25, 8, 6)
    np.testing.assert_array_equal(tiles, images[expected])
    render(figure)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_mistakes_or_none_make_a_figure_too(n):
    label = np.zeros(n, dtype=np.int64)
    figure = figures.worst_mistakes(
        np.ones((n, 28, 28)), true=label, predicted=label + 1, probability=label + 0.9, classes="ab"
    )
    assert sum(text == "said b (90.0%)" for text in texts(figure)) == n
    assert ("No mistakes: every example was recognised" in texts(figure)) == (n == 0)
    render(figure)


ANIMALS = ("cat", "dog", "gnu")


@pytest.mark.parametrize("n", [1, 7, 60])
def test_sample_images_are_spread_over_all_of_them(n):
    random = np.random.default_rng(0)
    images = random.random((n, 8, 6, 3)).astype(np.float32)
    true = np.sort(random.integers(3, size=n))
    predicted, probability = random.integers(3, size=n), random.random(n)
    figure = figures.sample_images(
        images, true=true, predicted=predicted, probability=probability, classes=ANIMALS
    )
    words = figure.axes[0].texts
    assert len(words) == 2 * min(n, 25)
    for said, held in zip(words[::2], words[1::2], strict=True):
        wrong = said.get_text().split()[1] != held.get_text().split()[1]
        assert (said.get_color() == figures.VERMILION) == wrong
    told = [text.get_text() for text in words]
    assert told[:2] == [
        f"said {ANIMALS[predicted[0]]} ({probability[0]:.1%})",
        f"is {ANIMALS[true[0]]}",
    ]
    assert told[-1] == f"is {ANIMALS[true[-1]]}"  # the last class, as they are sorted
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape[2] == 3
    render(figure)


def test_first_layer_weights_show_the_units_of_largest_norm_on_a_symmetric_scale():
    weights = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)
    weights *= np.random.default_rng(1).permutation(np.linspace(1, 2, 100))[:, None]
    figure = figures.first_layer_weights(weights, shape=(4, 5))
    image = figure.axes[0].images[0]
    assert image.norm.vmin == -image.norm.vmax
    shown = np.ma.filled(image.get_array(), np.nan)
    shown = shown[:, ~np.isnan(shown).all(0)]
    shown = shown[~np.isnan(shown).all(1)]
    tiles = shown.reshape(8, 4, 8, 5).swapaxes(1, 2).reshape(64, 20)
    norms = sorted((float(row @ row) for row in weights), reverse=True)[:64]
    np.testing.assert_allclose((tiles**2).sum(1), norms, rtol=1e-5)
    assert "First-layer weights of the 64 units of 100 with the largest norm" in texts(figure)
    render(figure)


@pytest.mark.parametrize("weights", [np.zeros((3, 4)), np.ones((1, 4))])
def test_first_layer_weights_of_few_or_untrained_units(weights):
    render(figures.first_layer_weights(weights, shape=(2, 2)))


def linear_plane(slope, offset):
    """A linear classifier's answer on a grid: P(1) = sigmoid(slope · x + offset)."""
    grid = np.meshgrid(np.linspace(-2, 3, 101), np.linspace(-1, 1, 61))
    logit = slope[0] * grid[0] + slope[1] * grid[1] + offset
    second = 1 / (1 + np.exp(-logit))
    return tuple(grid), np.stack([1 - second, second], -1)


def test_the_boundary_of_a_linear_classifier_is_its_line():
    x = np.array([[-1.5, 0.5], [2.5, -0.5], [0.0, 0.0]])
    grid, probability = linear_plane((2.0, -1.0), 0.4)
    figure = figures.decision_boundary(
        x, np.array([0, 1, 1]), grid=grid, probability=probability, classes=["no", "yes"]
    )
    axes = figure.axes[0]
    (boundary,) = axes.collections
    points = np.concatenate([path.vertices for path in boundary.get_paths()])
    np.testing.assert_allclose(points @ [2.0, -1.0], -0.4, atol=0.01)
    assert np.ptp(points[:, 1]) == pytest.approx(2)
    np.testing.assert_array_equal(line(axes, "class no"), x[:1])
    np.testing.assert_array_equal(line(axes, "class yes"), x[1:])

    red, _, blue = colour_at(figure, axes, 2.5, 0.9)  # deep in the second class
    assert red > blue
    red, _, blue = colour_at(figure, axes, -1.8, 0.9)
    assert blue > red
    assert "probability of class yes" in texts(figure)
    render(figure)


def test_the_boundary_is_where_the_picture_says_up_is():
    grid, probability = linear_plane((0.0, 4.0), 0.0)  # the second class lies above
    figure = figures.decision_boundary(
        np.zeros((0, 2)), np.zeros(0), grid=grid, probability=probability, classes="ab"
    )
    red, _, blue = colour_at(figure, figure.axes[0], 0, 0.8)
    assert red > blue


def test_three_classes_are_parted_where_two_are_level():
    centres = np.array([[-1, 0], [1, 0], [0, 1.5]])
    grid = np.meshgrid(np.linspace(-2, 2, 161), np.linspace(-1, 3, 161))
    distance = ((np.stack(grid, -1)[:, :, None] - centres) ** 2).sum(-1)
    probability = np.exp(-distance) / np.exp(-distance).sum(-1, keepdims=True)
    figure = figures.decision_boundary(
        centres, np.arange(3), grid=tuple(grid), probability=probability, classes="abc"
    )
    axes = figure.axes[0]
    for boundary in axes.collections:
        points = np.concatenate([path.vertices for path in boundary.get_paths()])
        nearest = np.sort(((points[:, None] - centres) ** 2).sum(-1), axis=1)
        np.testing.assert_allclose(nearest[:, 0], nearest[:, 1], atol=0.05)
    assert len(axes.collections) == 2
    regions = [colour_at(figure, axes, *(1.3 * centre)) for centre in centres]
    assert len({tuple(region.round(3)) for region in regions}) == 3


def test_a_network_that_sees_one_class_everywhere_has_no_boundary():
    grid, probability = linear_plane((0.0, 0.0), 3.0)
    figure = figures.decision_boundary(
        np.zeros((1, 2)), np.zeros(1), grid=grid, probability=probability, classes="ab"
    )
    assert not figure.axes[0].collections
    render(figure)
