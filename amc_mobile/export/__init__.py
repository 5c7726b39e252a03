"""Exporters and parity checks."""
