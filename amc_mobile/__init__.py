"""Channel pruning under a latency budget that is measured on the device it is meant for."""

__version__ = "0.1.0"
