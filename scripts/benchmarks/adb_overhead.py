"""What the way to the phone costs: 350 kernels in 3 rounds on the fake phone, through the real adb server.

The runner's own measuring is the lifetime of its process on the phone, as that notes it: loading the runtime and the
models, warming up, timing. `overhead_fraction` is the rest of the wall time, from adb's list of phones to the last row
in the table: taking and checking the phone, copying, starting, asking, storing, cleaning up. The protocol has the
defaults that `profile` has on a phone, but for the number of rounds and repeats. The phone is a process of its own.

`overhead_fraction`: of a phone that has measured before, so that runner and runtime library are there;
`first_use.overhead_fraction`: they are copied too. `shell_calls` does not depend on how busy this computer
is. The baseline gives the phone one round at a time. Prints a table, or with --json one document. --quick: 40 kernels.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import adbutils
import numpy as np
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from figures import print_document
from host_runner import build_host_runner, locate_library
from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.device.adb import AdbPhone, AdbServer, Deadline, choose_phone
from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.phone import PhoneDevice
from amc_mobile.device.profiles import load_profiles
from amc_mobile.latency.measurement import KernelRequest
from amc_mobile.latency.protocol import ProtocolConfig, measure_kernels
from amc_mobile.latency.table import LatencyTable

KERNELS, ROUNDS = 350, 3
# No repeats: how many batches they make would depend on what else this computer does.
CONFIG = ProtocolConfig(min_passes=ROUNDS, max_passes=ROUNDS, anchor_total_repeats=0)


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
    lines = ["#!/bin/sh", "began=$(date +%s.%N)", f'{build_host_runner()} "$@"', "code=$?"]
    script.write_text("\n".join([*lines, f"echo $began $(date +%s.%N) >> {times}", "exit $code", ""]))
    script.chmod(0o755)
    return script


def be_a_phone(folder: Path, host: Connection) -> None:
    """Tells its serial and works until it is told to stop."""
    phone = FakePhone(folder)
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2000000})
    host.send(phone.serial)
    host.recv()
    phone.stop()


@contextmanager
def attached_phone(folder: Path, server: PrivateAdbServer) -> Iterator[str]:
    """The serial of a phone in a process of its own: it shares no interpreter with what is measured."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=be_a_phone, args=(folder, theirs))
    process.start()
    try:
        serial = ours.recv()
        adbutils.AdbClient("127.0.0.1", server.port, socket_timeout=20).connect(serial)
        yield serial
    finally:
        ours.send("stop")
        process.join()


class CountingServer(AdbServer):
    """Counts what is asked of phones."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.shell_calls = 0

    def service(self, transport_id: int, service: str, deadline: Deadline) -> socket.socket:
        self.shell_calls += 1
        return super().service(transport_id, service, deadline)


@dataclass(frozen=True)
class Bench:
    """What all measurements share. `times`: the file where the runner's lifetimes are noted."""

    server: PrivateAdbServer
    serial: str
    library: RuntimeLibrary
    runner: Path
    times: Path
    models: dict[str, bytes]

    def measure(self, table: Path, *, jobs_per_batch: int) -> dict[str, float]:
        requests = {key: KernelRequest(Pointwise(key), partial(self.models.get, key)) for key in self.models}
        self.times.unlink(missing_ok=True)
        with LatencyTable(table) as rows:
            began = time.perf_counter()
            adb_server = CountingServer(self.server.port)
            adb = AdbPhone(adb_server, choose_phone(adb_server.settled_phones(), self.serial))
            device = PhoneDevice(adb, load_profiles()["pixel"], self.library, self.runner)
            device.jobs_per_batch = jobs_per_batch
            found = measure_kernels(device, requests, table=rows, config=CONFIG)
            wall_s = time.perf_counter() - began
        results = sum(len(kernel.passes) for kernel in found.values())
        assert results == ROUNDS * len(requests), f"{results} results of {ROUNDS * len(requests)}"
        runs = [[float(word) for word in line.split()] for line in self.times.read_text().splitlines()]
        runner_s = sum(end - start for start, end in runs)
        return {
            "overhead_fraction": 1 - runner_s / wall_s,
            "overhead_s": wall_s - runner_s,
            "runner_s": runner_s,
            "batches": len(runs),
            "shell_calls": adb_server.shell_calls,
        }


def measure_all(count: int, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and baselines."""
    os.environ["AMC_MOBILE_HOME"] = str(folder / "home")
    library = locate_library("onnxruntime")
    times = folder / "times"
    (folder / "adb").mkdir()
    server = PrivateAdbServer(folder / "adb")
    try:
        with attached_phone(folder / "phone", server) as serial:
            bench = Bench(server, serial, library, timed_runner(folder, times), times, kernels(count))
            first = bench.measure(folder / "first.sqlite", jobs_per_batch=PhoneDevice.jobs_per_batch)
            again = bench.measure(folder / "again.sqlite", jobs_per_batch=PhoneDevice.jobs_per_batch)
            rounds = bench.measure(folder / "rounds.sqlite", jobs_per_batch=count)
    finally:
        server.stop()
    figures = {**again, **{f"first_use.{name}": value for name, value in first.items()}}
    return figures, {f"one_batch_per_round.{name}": value for name, value in rounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    count = 40 if arguments.quick else KERNELS
    with tempfile.TemporaryDirectory(prefix="amc-overhead-") as folder:
        figures, baselines = measure_all(count, Path(folder))
    figures |= {"kernels": count, "rounds": ROUNDS}
    conditions = {"machine": platform.machine(), "cores": os.cpu_count(), "config": asdict(CONFIG)}
    if arguments.json:
        print_document("adb_overhead", figures, conditions, baselines)
        return
    for name, value in {**figures, **baselines}.items():
        print(f"{name:44} {value:.3f}" if isinstance(value, float) else f"{name:44} {value}")


if __name__ == "__main__":
    main()
