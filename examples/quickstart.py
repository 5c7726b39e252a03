"""Prune a narrow VGG to 70 % of its latency on this computer: python examples/quickstart.py [FOLDER]"""

from __future__ import annotations

import sys

import amc_mobile as amc

NETWORK = {"width": 0.125, "input_size": 32, "data": "digits"}

space = amc.Workspace(sys.argv[1] if len(sys.argv) > 1 else "amc-workspace")
trained = space.train("vgg16", epochs=2, **NETWORK)
print(trained.text())

network = space.network("vgg16", **NETWORK)
device = amc.open_device("host", runtime="onnxruntime", waive=["BUSY", "WIDE_BAND"])
latency = space.profile(network, device, quick=True)
print(f"original: {latency.p50_ms():.3f} ms, predictions within {latency.band:.0%}")

run = space.search(network, amc.Budget(latency_ratio=0.7), latency, episodes=6, calibration_images=128)
run.finetune(epochs=1)
files = run.export("onnx")
print(files.text())
for path in run.report().paths:
    print(f"report: {path}")
