"""The names of the ways to choose channels, which flags are checked against before torch is loaded."""

METHODS = ("backward", "omp", "lasso", "thinet", "taylor", "fpgm", "l1-rms", "l1")  # `channel_order` explains them
