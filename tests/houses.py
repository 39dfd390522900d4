"""A table as its user has it, from which each task has something to learn."""

from pathlib import Path

import numpy as np
import pandas as pd


def houses(folder: Path) -> Path:
    """A table of houses, in a folder."""
    rng = np.random.default_rng(0)
    n = 200
    frame = pd.DataFrame({"size": rng.normal(100, 30, n).round(1), "rooms": rng.integers(1, 8, n)})
    frame["town"] = rng.choice(["A", "B"], n)
    frame["price"] = 2000 * frame["size"] + 20_000 * (frame["town"] == "B") + rng.normal(0, 99, n)
    frame["rent"] = (frame["price"] / 300 + rng.normal(0, 9, n)).round(1)
    frame["cheap"] = (frame["price"] < 190_000 + rng.normal(0, 20_000, n)).astype(int)
    frame["large"] = (frame["size"] > 100 + rng.normal(0, 9, n)).astype(int)
    frame.to_csv(folder / "houses.csv", index=False)
    return folder / "houses.csv"
