"""Neural networks in NumPy alone, short enough to be read from top to bottom."""
