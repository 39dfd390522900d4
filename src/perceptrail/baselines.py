"""scikit-learn's models on the split that a run trains and validates on."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from perceptrail.data.dataset import Dataset, Part
from perceptrail.data.module import DataModule

# Half the trees at twice the rate, and coarser bins: the defaults are slow on images.
_BOOSTED: Mapping[str, Any] = {"max_iter": 50, "learning_rate": 0.2, "max_bins": 32}

# Of a seed. All compute with as many threads as PyTorch: the forest is told so, the others
# follow OMP_NUM_THREADS as it does.
_OF_CLASSES: Mapping[str, Callable[[int], Any]] = {
    "logistic regression": lambda seed: LogisticRegression(max_iter=1000, random_state=seed),
    "scikit-learn MLP": lambda seed: MLPClassifier(max_iter=500, random_state=seed),
    "random forest": lambda seed: RandomForestClassifier(
        n_jobs=torch.get_num_threads(), random_state=seed
    ),
    "boosted trees": lambda seed: HistGradientBoostingClassifier(**_BOOSTED, random_state=seed),
}
# By task.
PEERS: Mapping[str, Mapping[str, Callable[[int], Any]]] = {
    "classification": _OF_CLASSES,
    "multilabel": _OF_CLASSES,  # one for each label
    "regression": {
        "linear regression": lambda _: LinearRegression(),
        # Of standardised targets, as ours: those of other sizes it does not learn.
        "scikit-learn MLP": lambda seed: TransformedTargetRegressor(
            MLPRegressor(max_iter=500, random_state=seed), transformer=StandardScaler()
        ),
        "random forest": lambda seed: RandomForestRegressor(
            n_jobs=torch.get_num_threads(), random_state=seed
        ),
        "boosted trees": lambda seed: HistGradientBoostingRegressor(**_BOOSTED, random_state=seed),
    },
}


@dataclass(frozen=True)
class Fitted:
    """How a peer did: by what its task is known by, and in how many seconds.

    That is the accuracy, the share of labels that are right, or R².
    """

    train_score: float
    score: float
    fit_s: float


def same_split(
    dataset: Dataset, *, seed: int, val_size: float, train_size: int | None = None
) -> tuple[Part, Part]:
    """The training and the validation part that a run with these settings has.

    Raises `UserError` for a size that the data do not allow.
    """
    data = DataModule(dataset, batch_size=1, seed=seed, val_size=val_size, train_size=train_size)
    data.setup("fit")
    (x, y), (x_val, y_val) = data.train, data.val
    return (x.numpy(), y.numpy()), (x_val.numpy(), y_val.numpy())


def fit(peer: str, train: Part, val: Part, *, seed: int, task: str = "classification") -> Fitted:
    """Train one of a task's `PEERS` and judge it on both parts."""
    model = PEERS[task][peer](seed)
    if task == "regression" and train[1].ndim > 1:
        model = MultiOutputRegressor(model)  # one for each number
    if task == "multilabel":
        model = MultiOutputClassifier(model)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is judged where it has got to
        model.fit(*train)
    seconds = time.perf_counter() - start

    def score(x: NDArray[Any], y: NDArray[Any]) -> float:
        labels = task == "multilabel"  # of which scikit-learn counts the rows that have all right
        return float((model.predict(x) == y).mean() if labels else model.score(x, y))

    return Fitted(score(*train), score(*val), seconds)
