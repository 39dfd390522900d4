"""Measure perceptrail against what one would use instead: everything, or the parts named.

make bench                                   all parts, up to five rounds, within half an hour
make bench ARGS="speed --rounds 5"           one part
make bench ARGS=--quick                      does it run at all? seconds a contender

Speeds drift with the machine's other load, so that every figure is a ratio of what ran in the same
round. Writes a JSON file and a picture for each part to benchmarks/results.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PARTS = {
    "default": 3,
    "speed": 3,
    "startup": 3,
    "accuracy": 2,
    "tracking": 3,
    "growth": 1,
}  # and their rounds
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "scikit-learn", "skorch", "keras", "jax")


def main() -> None:
    """Run the parts and show what came out."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--rounds", type=int, help="default: one to five")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest sizes")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--python", default=sys.executable, help="what runs perceptrail itself")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"parts: no {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    # Both before any library is imported, for the children too: some count the processors.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    from benchmarks import accuracy, default, growth, speed, startup, tracking
    from benchmarks.contest import Lab

    modules = dict(zip(PARTS, (default, speed, startup, accuracy, tracking, growth), strict=True))
    about = {
        "machine": f"{options.threads} threads of {platform.processor() or platform.machine()}",
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "quick": options.quick,
    }
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(str(Path(options.python).absolute()), Path(folder))
        lab.train("experiment=smoke", "trainer=cpu")  # makes the store, which is once only
        for name in options.parts or PARTS:
            print(f"\n{name}: {modules[name].__doc__}", flush=True)
            rounds = options.rounds or (1 if options.quick else PARTS[name])
            rows = modules[name].measure(lab, rounds=rounds, quick=options.quick)
            written = RESULTS / f"{name}.json"
            written.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
            modules[name].draw(rows).savefig(written.with_suffix(".png"), dpi=150)
            print(f"\n{modules[name].show(rows)}", flush=True)


if __name__ == "__main__":
    main()
