"""Many networks at once against one by one, in one run.

    python benchmarks/fused.py
    python benchmarks/fused.py --only xor --members 100

One by one is Hydra's own launcher on a few of the same jobs, whose mean stands for all; what counts
is `time/fit_s`, the training alone. The stack is timed as a whole, all its members together. A
round does one after the other, for a machine's speed drifts; the ratio is taken within it. One
thread each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Case:
    """Jobs to be trained together: what they share, how many, and how many are trained alone."""

    overrides: tuple[str, ...]
    members: int
    alone: int
    goal: float


CASES = {
    "xor": Case(("experiment=xor",), members=1000, alone=3, goal=200),
    "digits": Case(("data=digits", "model.hidden=[64,32]"), members=32, alone=3, goal=15),
    "mnist": Case(("data=mnist", "trainer.max_epochs=2"), members=16, alone=3, goal=1.3),
}
QUIET = ("tracking=none", "figures=false", "callbacks.early_stopping=null", "model.dropout=0")


def train(launcher: str, case: Case, members: int) -> tuple[list[float], float]:
    """Seconds of training of each of so many jobs, and of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = ",".join(map(str, range(members)))
        command = [
            *(sys.executable, str(ROOT / "train.py"), "-m", f"hydra/launcher={launcher}"),
            *(*case.overrides, *QUIET, f"seed={seeds}", f"hydra.sweep.dir={folder}/jobs"),
        ]
        started = time.perf_counter()
        subprocess.run(
            command,
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        seconds = time.perf_counter() - started
        found = Path(folder, "jobs").glob("*/metrics.json")
        return [json.loads(file.read_text())["time/fit_s"] for file in found], seconds


def main() -> None:
    """Run each case in rounds; print seconds and ratios, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--members", type=int, help="so many, instead of the case's number")
    options = parser.parse_args()
    results = {}
    for name in [options.only] if options.only else CASES:
        case = CASES[name]
        members = options.members or case.members
        ratios, whole = [], []
        for turn in range(options.rounds):
            alone, _ = train("basic", case, case.alone)
            together, seconds = train("fused", case, members)
            ratios.append(members * mean(alone) / max(together))
            whole.append(seconds)
            print(
                f"{name:7} round {turn + 1}: {members} members {max(together):7.2f} s, "
                f"one alone {mean(alone):6.2f} s, {ratios[-1]:7.1f} times as fast; "
                f"the whole command {seconds:6.1f} s",
                flush=True,
            )
        print(
            f"{name:7} {median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f}), "
            f"goal {case.goal}"
        )
        results[name] = {"members": members, "ratios": ratios, "command_s": whole}
    file = ROOT / "benchmarks" / "results" / "fused.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
