"""An experiment lab for neural networks, with multi-layer perceptrons as its ground."""
