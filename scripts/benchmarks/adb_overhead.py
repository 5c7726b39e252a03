"""What the way to the phone costs: 350 kernels in 3 rounds on the fake phone, through the real adb server.

`overhead_fraction`: the share of the wall time in which the runner did not run, from its start to its end. All else
counts: taking the phone, checks, copying, starting, asking, cleaning up. The protocol runs as `profile` runs it; the
baseline gives the phone one round at a time. Prints a table, or with --json one document. --quick: 40 kernels.
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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.device.adb import AdbPhone, choose_phone
from amc_mobile.device.adb_server import AdbServer
from amc_mobile.device.bench import build_host_runner, locate_library
from amc_mobile.device.phone_device import PhoneDevice
from amc_mobile.device.phone_passes import PhonePasses
from amc_mobile.device.profile import load_profiles
from amc_mobile.device.runtime_library import RuntimeLibrary
from amc_mobile.latency.measurement import KernelRequest
from amc_mobile.latency.protocol import ProtocolConfig, measure_kernels

KERNELS, ROUNDS = 350, 3
CONFIG = ProtocolConfig(min_passes=ROUNDS, max_passes=ROUNDS)


@dataclass(frozen=True)
class Pointwise:
    """What the protocol needs to know of a kernel."""

    key: str

    @property
    def label(self) -> str:
        return self.key

    def to_document(self) -> dict[str, str]:
        return {"key": self.key}


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


def measure(count: int, folder: Path, *, jobs_per_batch: int) -> dict[str, float]:
    folder.mkdir()
    os.environ["AMC_MOBILE_HOME"] = str(folder / "home")
    models = kernels(count)
    located = locate_library("onnxruntime")
    digest = hashlib.sha256(located.path.read_bytes()).hexdigest()
    library = RuntimeLibrary("onnxruntime", located.version, platform.machine(), "glibc", located.path, digest)
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
        device = PhonePasses(PhoneDevice(adb, load_profiles()["pixel"], library, runner))
        device.jobs_per_batch = jobs_per_batch
        requests = {key: KernelRequest(Pointwise(key), partial(models.get, key)) for key in models}
        found = measure_kernels(device, requests, config=CONFIG)
        wall_s = time.perf_counter() - began
    finally:
        phone.stop()
        server.stop()
    results = sum(len(kernel.passes) for kernel in found.values())
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
    count = 40 if arguments.quick else KERNELS
    with tempfile.TemporaryDirectory(prefix="amc-overhead-") as folder:
        figures = measure(count, Path(folder) / "batched", jobs_per_batch=PhonePasses.jobs_per_batch)
        rounds = measure(count, Path(folder) / "rounds", jobs_per_batch=count)
    baselines = {"one_batch_per_round.overhead_fraction": rounds["overhead_fraction"]}
    conditions = {"machine": platform.machine(), "cores": os.cpu_count(), "config": asdict(CONFIG)}
    if arguments.json:
        document = {"name": "adb_overhead", "figures": figures, "baselines": baselines, "conditions": conditions}
        print(json.dumps(document, indent=1))
        return
    for name, value in {**figures, **baselines}.items():
        print(f"{name:40} {value:.3f}" if isinstance(value, float) else f"{name:40} {value}")


if __name__ == "__main__":
    main()
