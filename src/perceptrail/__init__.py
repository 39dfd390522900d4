"""An experiment lab for neural networks, with multi-layer perceptrons as its ground."""

import os
import sys

from perceptrail.lean import Lean

# How many turns one of PyTorch's threads waits for another before it lets go of its core. This many
# cost nothing on a free machine; libgomp's 300,000 make two trainings on the same cores wait for
# each other at every operation. It is read when PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

sys.meta_path.insert(0, Lean())
