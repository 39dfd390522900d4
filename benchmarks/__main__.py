"""Measure perceptrail against what one would use instead: everything, or the parts named.

make bench                                   all parts, about an hour on two cores
make bench ARGS="speed --rounds 5"           one part
make bench ARGS=--quick                      does it run at all? a round of the smallest sizes

Speeds drift with the machine's other load, so that every figure is a ratio of what ran in the same
round. After each round, what is known is written to benchmarks/results: a JSON file and a picture
for each part, those of --quick to a folder of their own.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib import import_module, metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PARTS = {
    "default": 3,
    "speed": 3,
    "startup": 3,
    "accuracy": 3,
    "tracking": 3,
    "growth": 1,
    "fused": 3,
    "ending": 3,
    "bf16": 3,
    "overhead": 3,
    "trials": 3,
    "workers": 3,
    "pruning": 3,
    "recipes": 3,
}  # and their rounds
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "scikit-learn", "skorch", "keras", "jax")


def main() -> None:
    """Run the parts and show what came out."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--rounds", type=int, help="default: three, of growth one")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest sizes")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--python", default=sys.executable, help="what runs perceptrail itself")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"parts: no {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    # Both before any library is imported, for the children too: some count the processors.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    from benchmarks.contest import Lab
    from benchmarks.table import markdown

    about = {
        "machine": f"{options.threads} threads of {platform.processor() or platform.machine()}",
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "quick": options.quick,
    }
    folder = RESULTS / "quick" if options.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(str(Path(options.python).absolute()), Path(place))
        lab.train("experiment=smoke", "trainer=cpu")  # makes the store, which is once only
        for name in options.parts or PARTS:
            part = import_module(f"benchmarks.{name}")
            print(f"\n{name}: {part.__doc__}", flush=True)
            rows = []
            for turn in range(1, 1 + (options.rounds or (1 if options.quick else PARTS[name]))):
                started = time.perf_counter()
                measured = part.measure(lab, turn=turn, quick=options.quick)
                rows += [{"round": turn, **row} for row in measured]
                table = part.show(rows)
                results = {**about, "rounds": turn, "table": table, "rows": rows}
                written = folder / f"{name}.json"
                written.write_text(json.dumps(results, indent=1) + "\n")
                part.draw(rows).savefig(written.with_suffix(".png"), dpi=150)
                print(f"round {turn}: {time.perf_counter() - started:.0f} s", flush=True)
            print(f"\n{markdown(table)}", flush=True)


if __name__ == "__main__":
    main()
