"""Devices that run models: this computer, later phones."""
