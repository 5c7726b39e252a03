"""Prune a small MobileNet to half of its latency on this computer: python examples/quickstart.py [FOLDER]"""

from __future__ import annotations

import sys

import amc_mobile as amc

NETWORK = {"width": 0.25, "input_size": 32, "data": "digits"}

space = amc.Workspace(sys.argv[1] if len(sys.argv) > 1 else "quickstart-workspace")
trained = space.train("mobilenet_v1", epochs=3, **NETWORK)
print(trained.text())

network = space.network("mobilenet_v1", **NETWORK)
device = amc.open_device("host", waive=["BUSY", "WIDE_BAND"])
latency = space.profile(network, device, quick=True)
print(f"original: {latency.p50_ms():.3f} ms, predictions within {latency.band:.0%}")

run = space.search(network, amc.Budget(latency_ratio=0.7), latency, episodes=20)
run.finetune(epochs=1)
files = run.export("onnx" if latency.conditions.runtime == "onnxruntime" else "tflite")
print(files.text())
print(run.report().text())
