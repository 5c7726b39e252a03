"""What the way to the phone costs: 350 kernels in 3 rounds on the fake phone, through the real adb server.

`overhead_fraction`: the share of the wall time in which the runner did not run, from its start to its end. All else
counts: taking the phone, checks, copying, starting, asking, cleaning up. Prints a table, or with --json one document.
--quick measures 40 kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.device.adb import AdbPhone, choose_phone
from amc_mobile.device.adb_server import AdbServer
from amc_mobile.device.bench import build_host_runner, locate_library
from amc_mobile.device.bench_manifest import BenchModel, BenchTiming
from amc_mobile.device.bench_results import BenchResult
from amc_mobile.device.phone_device import PhoneDevice
from amc_mobile.device.profile import load_profiles
from amc_mobile.device.runtime_library import RuntimeLibrary

KERNELS, ROUNDS = 350, 3
TIMING = BenchTiming(warmup_runs=4, samples=20, min_sample_ms=0.25, max_s=1.0)


def convolution(in_channels: int, out_channels: int, size: int) -> bytes:
    """A pointwise convolution as they occur in mobile networks."""
    values = np.full(out_channels * in_channels, 0.01, dtype=np.float32)
    weights = helper.make_tensor("w", TensorProto.FLOAT, [out_channels, in_channels, 1, 1], values)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, in_channels, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, out_channels, size, size])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "kernel", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def kernels(count: int) -> dict[str, bytes]:
    rng = random.Random(0)
    return {
        f"k{n}.onnx": convolution(8 * rng.randint(2, 24), 8 * rng.randint(2, 24), rng.choice((7, 14, 28)))
        for n in range(count)
    }


def timed_runner(folder: Path, times: Path) -> Path:
    """A script in the runner's place that runs it and notes when it began and ended."""
    script = folder / "amc-bench"
    lines = ["#!/bin/sh", "began=$(date +%s.%N)", f'{build_host_runner(folder / "built")} "$@"', "code=$?"]
    script.write_text("\n".join([*lines, f"echo $began $(date +%s.%N) >> {times}", "exit $code", ""]))
    script.chmod(0o755)
    return script


def measure(count: int, folder: Path) -> dict[str, float]:
    os.environ["AMC_MOBILE_HOME"] = str(folder / "home")
    models = kernels(count)
    found = locate_library("onnxruntime")
    digest = hashlib.sha256(found.path.read_bytes()).hexdigest()
    library = RuntimeLibrary("onnxruntime", found.version, platform.machine(), "glibc", found.path, digest)
    times = folder / "times"
    runner = timed_runner(folder, times)
    (folder / "adb").mkdir()
    server = PrivateAdbServer(folder / "adb")
    phone = FakePhone(folder / "phone")
    try:
        server.attach(phone)
        phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2000000})
        began = time.perf_counter()
        adb_server = AdbServer(server.port)
        adb = AdbPhone(adb_server, choose_phone(adb_server.settled_phones(), phone.serial))
        device = PhoneDevice(adb, load_profiles()["pixel"], library, runner)
        results = 0
        entries = [BenchModel(name.removesuffix(".onnx"), name) for name in models]
        with device.session():
            for number in range(ROUNDS):
                random.Random(number).shuffle(entries)
                for event in device.bench(entries, models, TIMING, deadline_s=600):
                    results += isinstance(event, BenchResult)
                device.require_steady()
        wall_s = time.perf_counter() - began
    finally:
        phone.stop()
        server.stop()
    assert results == ROUNDS * count, f"{results} results of {ROUNDS * count}"
    runs = [[float(word) for word in line.split()] for line in times.read_text().splitlines()]
    runner_s = sum(end - start for start, end in runs)
    return {
        "overhead_fraction": 1 - runner_s / wall_s,
        "wall_s": wall_s,
        "runner_s": runner_s,
        "kernels": count,
        "rounds": ROUNDS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amc-overhead-") as folder:
        figures = measure(40 if arguments.quick else KERNELS, Path(folder))
    conditions = {"machine": platform.machine(), "cores": os.cpu_count(), "timing": str(TIMING)}
    if arguments.json:
        print(json.dumps({"name": "adb_overhead", "figures": figures, "conditions": conditions}, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:.3f}" if isinstance(value, float) else f"{name:20} {value}")


if __name__ == "__main__":
    main()
