"""Measuring, the latency table, prediction and calibration."""
