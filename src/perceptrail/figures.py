"""Figures of a run: arrays in, a matplotlib figure out; nothing is read or written."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from perceptrail.drawing import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PLAIN,
    SHADE,
    SMALL,
    VERMILION,
    Floats,
    Integers,
    Rows,
    legend,
    line,
    log_if_wide,
    nth,
    panel,
    scale,
    sheet,
)
from perceptrail.measures import said

STAGES = {"train": ORANGE, "val": BLUE, "test": GREEN}
ERRORS = LinearSegmentedColormap.from_list("errors", ["#FFFFFF", "#F2B279", VERMILION, "#6B2A00"])
SIDES = LinearSegmentedColormap.from_list("sides", [BLUE, "#FFFFFF", VERMILION])

# Of a task: what the names of its two metrics end in; what their axes say, the factor into that.
RESULTS: Mapping[str, Mapping[str, tuple[str, float]]] = {
    "classification": {"loss": ("loss (nats)", 1), "acc": ("accuracy (%)", 100)},
    "regression": {"loss": ("loss", 1), "r2": ("R²", 1)},
    "multilabel": {"loss": ("loss (nats)", 1), "acc": ("labels right (%)", 100)},
}
SCHEDULES = {"lr": "learning rate", "dropout": "dropout rate"}


def learning_curves(
    rows: Rows, *, best_epoch: int | None = None, task: str = "classification"
) -> Figure:
    """Loss and accuracy against the epoch; below them the learning and dropout rates that change.

    In place of the accuracy, what another `task` is known by.

    `rows` holds one mapping an epoch: `epoch` and metrics such as `train/loss`, `val/acc` (in
    [0, 1]), `lr`, `dropout`, any of which may be missing. Where several rows share an epoch, being
    of several seeds, their mean is drawn in a band of ± one standard deviation. `best_epoch` is
    counted as `epoch` is.
    """
    names = {name for row in rows for name in row if math.isfinite(row[name])}
    if not names:
        return sheet(4.2, 0.6, title="No epoch was finished")
    schedules = [name for name in SCHEDULES if name in names and np.ptp(_curve(rows, name)[1]) > 0]
    foot = 1.6 if schedules else 0
    figure = sheet(8.4, 3.5 + foot, title=_outcome(rows, best_epoch=best_epoch))
    for column, (quantity, (label, factor)) in enumerate(RESULTS[task].items()):
        stages = [stage for stage in STAGES if f"{stage}/{quantity}" in names]
        if not stages:
            continue
        axes = panel(figure, (0.7 + 4.15 * column, 0.5 + foot, 3.4, 2.5), x="epoch", y=label)
        for stage in stages:
            epochs, mean, sd = _curve(rows, f"{stage}/{quantity}")
            line(axes, epochs, factor * mean, factor * sd, colour=STAGES[stage], label=stage)
        if quantity == "loss":
            log_if_wide(axes)
        _epochs(axes, rows, best_epoch=best_epoch)
        legend(axes, loc="best")
    for column, name in enumerate(schedules):
        box = (0.7 + 4.15 * column, 0.5, 3.4, 0.9)
        axes = panel(figure, box, x="epoch", y=SCHEDULES[name])
        line(axes, *_curve(rows, name), colour=GREY, label=name)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PLAIN)
        _epochs(axes, rows, best_epoch=best_epoch)
    return figure


def rate_range(rates: Floats, losses: Floats, suggestion: float) -> Figure:
    """The loss [n] at each learning rate [n] of a range test, the suggested rate marked."""
    title = f"The loss falls fastest at a learning rate of {suggestion:.2g}"
    figure = sheet(5.6, 3.6, title=title)
    axes = panel(figure, (0.8, 0.55, 4.5, 2.5), x="learning rate", y="loss, smoothed")
    line(axes, rates, losses, np.zeros_like(losses), colour=GREY, label="loss")
    axes.set_xscale("log")
    axes.axvline(suggestion, color=VERMILION, linewidth=1, linestyle="--")
    return figure


def confusion_matrix(counts: Integers, *, classes: Sequence[str]) -> Figure:
    """What was taken for what: `counts` [k, k], a row for each true class, a column for each guess.

    Colour shows the errors alone, which the diagonal would drown; each class's recall stands at
    the right.
    """
    k, total, right = len(classes), int(counts.sum()), int(np.trace(counts))
    on_diagonal = np.eye(k, dtype=bool)
    errors = np.where(on_diagonal, 0, counts)
    title = f"Accuracy {right / max(total, 1):.2%}: {total - right:,} of {total:,} wrong"
    if total > right:
        true, guess = divmod(int(errors.argmax()), k)
        title += f",\nmost often {classes[true]} taken for {classes[guess]} ({errors.max():,}×)"

    longest = max(map(len, classes))
    tilt = 45 if longest > 3 else 0
    side = max(2.0, 0.4 * k)
    left, bottom = 0.5 + 0.065 * longest, 0.5 + (0.045 * longest if tilt else 0)
    figure = sheet(max(left + side + 0.75, 4.6), bottom + side + 0.8, title=title)
    axes = panel(figure, (left, bottom, side, side), x="predicted class", y="true class")
    edges = np.arange(k + 1) - 0.5
    axes.set_facecolor(SHADE)
    axes.pcolormesh(
        edges,
        edges,
        np.ma.masked_where(on_diagonal, errors),
        cmap=ERRORS,
        vmin=0,
        vmax=max(errors.max(), 1),
        edgecolors="white",
    )
    for true, guess in np.argwhere(counts).tolist():
        colour = "white" if errors[true, guess] > 0.6 * errors.max() else INK
        place: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "fontsize": SMALL}
        axes.text(guess, true, f"{counts[true, guess]}", **place)
    note: dict[str, Any] = {"color": GREY, "fontsize": SMALL}
    axes.text(k - 0.5, -0.52, "  recall", va="bottom", **note)
    for true, row in enumerate(counts):
        recall = f"  {row[true] / row.sum():.1%}" if row.any() else "  –"
        axes.text(k - 0.5, true, recall, va="center", **note)
    axes.set_xticks(range(k), classes, rotation=tilt, ha="right" if tilt else "center")
    axes.set_yticks(range(k), classes)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def worst_mistakes(
    images: Floats,
    *,
    true: Integers,
    predicted: Integers,
    probability: Floats,
    classes: Sequence[str],
) -> Figure:
    """The most confident errors among images [n, height, width(, 3)], at most 25 of them.

    `true` and `predicted` [n] are classes, `probability` [n] is that of the predicted one. Images
    that were recognised may be among them; they are left out.
    """
    wrong = np.flatnonzero(true != predicted)
    worst = wrong[np.argsort(-probability[wrong], kind="stable")][:25]
    if not len(worst):
        return sheet(4.2, 0.6, title="No mistakes: every example was recognised")
    title = f"The {len(worst)} most confident mistakes" if len(worst) > 1 else "The only mistake"
    return _captioned(
        images,
        worst,
        title,
        true=true,
        predicted=predicted,
        probability=probability,
        classes=classes,
    )


def sample_images(
    images: Floats,
    *,
    true: Integers,
    predicted: Integers,
    probability: Floats,
    classes: Sequence[str],
) -> Figure:
    """What was made of at most 25 images [n, height, width(, 3)], evenly spaced among them.

    The others are as `worst_mistakes` has them.
    """
    some = np.unique(np.linspace(0, len(images) - 1, 25).round().astype(int))
    right = int((true[some] == predicted[some]).sum())
    title = f"{len(some)} of {len(images):,} examples, {right} of them recognised"
    return _captioned(
        images,
        some,
        title,
        true=true,
        predicted=predicted,
        probability=probability,
        classes=classes,
    )


def _captioned(
    images: Floats,
    chosen: Integers,
    title: str,
    *,
    true: Integers,
    predicted: Integers,
    probability: Floats,
    classes: Sequence[str],
) -> Figure:
    """Those images that are chosen, with what each was taken for, marked if it is not that."""
    columns = min(len(chosen), 5)
    above, beside = math.ceil(0.36 * images.shape[1]), math.ceil(0.15 * images.shape[2])
    canvas, corners = _tiles(images[chosen], columns=columns, above=above, beside=beside)
    width = max(1.3, 0.06 * (14 + max(map(len, classes)))) * columns  # for what stands above
    height = width * canvas.shape[0] / canvas.shape[1]
    figure = sheet(max(width + 0.2, 4.2), height + 0.4, title=title)
    axes = panel(figure, (0.12, 0.05, width, height))
    axes.imshow(canvas, cmap="gray_r", interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for example, (top, left) in zip(chosen, corners, strict=True):
        is_right = predicted[example] == true[example]
        said = f"said {classes[predicted[example]]} ({probability[example]:.1%})"
        is_in_truth = f"is {classes[true[example]]}"
        for row, text, colour in (
            (0.5, said, INK if is_right else VERMILION),
            (0.06, is_in_truth, INK),
        ):
            place = (left - 0.5, top - row * above)
            axes.text(*place, text, va="bottom", color=colour, fontsize=SMALL)
    return figure


def first_layer_weights(weights: Floats, *, shape: tuple[int, int]) -> Figure:
    """What each unit of the first layer looks at: weights [units, height * width] as images.

    All share one colour scale, the same on both sides of zero. Of more than 64 units, those with
    the largest norm.
    """
    units = len(weights)
    largest = np.argsort(-np.linalg.norm(weights, axis=1), kind="stable")[:64]
    shown = weights[largest].reshape(-1, *shape)
    canvas, _ = _tiles(shown, columns=min(len(shown), 8))
    width = 0.7 * min(len(shown), 8)
    height = width * canvas.shape[0] / canvas.shape[1]
    title = f"First-layer weights of all {units} units"
    if units > len(shown):
        title = f"First-layer weights of the {len(shown)} units of {units} with the largest norm"
    figure = sheet(max(width + 0.95, 4.6), height + 0.5, title=title)
    axes = panel(figure, (0.12, 0.08, width, height))
    limit = float(np.quantile(np.abs(shown), 0.995)) or 1.0  # a few outliers would pale the rest
    image = axes.imshow(
        canvas, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto"
    )
    axes.set_axis_off()
    scale(figure, image, (width + 0.22, 0.08, 0.12, height), label="weight", extend="both")
    return figure


def decision_boundary(
    x: Floats,
    y: Integers,
    *,
    grid: tuple[Floats, Floats],
    probability: Floats,
    classes: Sequence[str],
) -> Figure:
    """Points x [n, 2] of classes y [n] over the probability of each class in the plane.

    `grid` is the pair of arrays [rows, columns] that `np.meshgrid` makes of evenly spaced values,
    `probability` [rows, columns, k] the network's answer there. Two classes are shaded by the
    probability of the second, more by that of the likeliest; lines mark where the two likeliest
    are level, which for two classes is at 0.5.
    """
    (left, right), (low, high) = ((float(axis.min()), float(axis.max())) for axis in grid)
    inch = 3.9 / max(right - left, high - low)
    width, height = inch * (right - left), inch * (high - low)
    title = f"{len(x):,} points and the boundary the network drew"
    figure = sheet(max(width + 1.6, 4.6), height + 1.25, title=title)
    axes = panel(figure, (0.65, 0.5, width, height), x="x₁", y="x₂")
    axes.grid(visible=False)
    over: dict[str, Any] = {
        "extent": (left, right, low, high),
        "origin": "lower",
        "aspect": "auto",
    }
    if len(classes) == 2:
        second = probability[..., 1]
        image = axes.imshow(second, cmap=SIDES, vmin=0, vmax=1, alpha=0.6, **over)
        label = f"probability of class {classes[1]}"
        scale(figure, image, (width + 0.8, 0.5, 0.12, height), label=label)
    else:
        colours = np.array([to_rgb(nth(COLOURS, k)) for k in range(len(classes))])
        share = (probability.max(-1, keepdims=True) - 1 / len(classes)) * 0.6
        axes.imshow(1 - share * (1 - colours[probability.argmax(-1)]), **over)
    for k in range(1, len(classes)):  # a line between two classes borders on one after the first
        lead = probability[..., k] - np.delete(probability, k, axis=-1).max(-1)
        if lead.min() < 0 < lead.max():
            axes.contour(*grid, lead, levels=[0], colors=INK, linewidths=1.2)
    for k, name in enumerate(classes):
        axes.plot(
            *x[y == k].T,
            linestyle="none",
            marker=nth(MARKERS, k),
            markersize=5 if len(x) <= 500 else 4,
            markerfacecolor=nth(COLOURS, k),
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=f"class {name}",
        )
    legend(
        axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, columnspacing=1, borderaxespad=0.2
    )
    return figure


def _tiles(
    images: Floats, *, columns: int, above: int = 1, beside: int = 1
) -> tuple[Floats, list[tuple[int, int]]]:
    """Images [n, height, width(, 3)] side by side in one array, nothing between, and their corners.

    One large image is drawn many times faster than a panel for each.
    """
    n, height, width, *colours = images.shape
    down, across = height + above, width + beside
    nothing = 1.0 if colours else np.nan
    canvas = np.full((math.ceil(n / columns) * down, columns * across, *colours), nothing)
    corners = [(above + i // columns * down, i % columns * across) for i in range(n)]
    for image, (top, left) in zip(images, corners, strict=True):
        canvas[top : top + height, left : left + width] = image
    return canvas, corners


def _outcome(rows: Rows, *, best_epoch: int | None) -> str:
    times = Counter(row["epoch"] for row in rows)
    last, seeds = int(max(times)), max(times.values())
    if seeds > 1:
        return f"{last} epochs: mean ± sd of {seeds} seeds"
    best = next((row for row in rows if row["epoch"] == best_epoch), None)
    if best is None:
        return f"{last} epochs"
    title = f"Epoch {best_epoch} of {last} is the best"
    known = {k.removeprefix("val/"): v for k, v in best.items() if k.startswith("val/")}
    if "loss" in known and len(known) > 1:
        title += f": validation loss {known.pop('loss'):.4f}, {said(dict(list(known.items())[:1]))}"
    return title


def _curve(rows: Rows, name: str) -> tuple[Floats, Floats, Floats]:
    """The epochs of a metric, and its mean and standard deviation over the rows of each."""
    finite = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    points = np.array([(row["epoch"], row[name]) for row in finite])
    epochs, of = np.unique(points[:, 0], return_inverse=True)
    share = np.bincount(of)
    mean = np.bincount(of, points[:, 1]) / share
    square = np.bincount(of, (points[:, 1] - mean[of]) ** 2)
    return epochs, mean, np.sqrt(square / np.maximum(share - 1, 1))


def _epochs(axes: Axes, rows: Rows, *, best_epoch: int | None) -> None:
    epochs = [row["epoch"] for row in rows]
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if best_epoch is not None:
        axes.axvline(best_epoch, color=GREY, linewidth=1, linestyle=":", zorder=1, label="best")
