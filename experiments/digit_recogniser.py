"""How well does a multi-layer perceptron read handwritten digits?

MNIST's 60,000 training digits were written by some 250 people, its 10,000 test digits by others.
The recipe was chosen on validation data, held out of the training digits; the test digits are read
here, once for each seed, and nothing is chosen by them. What is left wrong is mostly what a person
would hesitate over, too.
"""

from perceptrail.studies import Study, check, execute, of, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

import numpy as np

from perceptrail import charts, figures
from perceptrail.data.dataset import as_float
from perceptrail.prediction import judge


def main(study: Study) -> None:
    """Train the recipe with every seed, test each network, and show the first one's mistakes."""
    cfg = study.cfg
    done = study.train(
        "recipe", f"experiment={cfg.recipe}", *cfg.overrides, variants={cfg.recipe: []}
    )
    accuracy, counts = [], np.zeros((10, 10), np.int64)
    for run in done:
        network, data = run.load()
        x, y = data.test()
        judged = judge(network, x, y)
        study.note("test", variant=run.variant, seed=run.seed, **{"test/acc": judged.accuracy})
        accuracy.append(judged.accuracy)
        counts += judged.counts
    study.metric("test/acc", accuracy)
    validation = of(done, "best/val/acc")[cfg.recipe]
    study.metric("val/acc", validation)
    study.metric("parameters", network.parameter_count)
    study.metric("time/fit_s", [run["time/fit_s"] for run in done])

    study.figure(
        "accuracy",
        charts.dots(
            {"": {"validation": validation, "test": accuracy}},
            title=f"{study.cfg.recipe}: {network.parameter_count:,} parameters, {cfg.seeds} seeds",
            x="accuracy (%)",
            percent=True,
        ),
        "Validation and test accuracy, a dot for each seed.",
    )
    rows = [row for run in done for row in run.history]
    study.figure("curves", figures.learning_curves(rows), "How the trainings went.")
    study.figure(
        "confusion",
        figures.confusion_matrix(counts, classes=data.classes),
        "What was taken for what on the test digits, all seeds together.",
    )
    height, width = data.shape
    mistakes = figures.worst_mistakes(
        as_float(x).reshape(-1, height, width),
        true=y,
        predicted=judged.predicted,
        probability=judged.probability.max(1),
        classes=data.classes,
    )
    study.figure("mistakes", mistakes, "The test digits that the last network got most wrong.")
    weights = network.weights[0].detach().numpy()
    study.figure(
        "weights",
        figures.first_layer_weights(weights, shape=(height, width)),
        "What the units of its first layer look for.",
    )
    best = float(np.mean(accuracy))
    study.claim(
        "A neural network can be built that recognises handwritten digits",
        verdict(best >= 0.98, partly=best >= 0.9),
        f"{percent(accuracy)} of the test digits",
    )


if __name__ == "__main__":
    execute(main)
