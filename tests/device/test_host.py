"""This computer as the device: what it is, and what its runtimes measure."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from amc_mobile.device import host
from amc_mobile.device.conditions import core_ranges
from amc_mobile.device.device import Heat, Timing, time_session
from amc_mobile.device.host import (
    HostDevice,
    clock_mode,
    counters,
    installed_runtimes,
    processor_name,
    random_input,
    read_heat,
)
from amc_mobile.errors import DeviceError, InvalidConfig, InvalidInput, MissingDependency
from amc_mobile.export.converters import to_onnx, to_tflite
from amc_mobile.formats import BY_RUNTIME, TFLITE, Format
from amc_mobile.latency.protocol import ProtocolConfig, measure_model, measure_pair


def test_core_numbers_are_written_as_ranges() -> None:
    assert core_ranges((0, 1, 2, 5)) == "0-2,5"
    assert core_ranges((3,)) == "3"
    assert core_ranges((0, 2, 4, 5)) == "0,2,4-5"
    assert core_ranges(()) == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Abacus 9 @ 2 GHz\n", "Abacus 9 @ 2 GHz"),
        ("Processor\t: AArch64 rev 4\nHardware\t: Slate 5\n", "Slate 5"),
        ("Processor\t: AArch64 rev 4\n", "AArch64 rev 4"),
    ],
)
def test_the_processor_is_named_as_the_system_tells_it(tmp_path: Path, text: str, name: str) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    assert processor_name(info) == name


def test_a_system_that_does_not_tell_still_has_a_processor(tmp_path: Path) -> None:
    assert processor_name(tmp_path / "missing")
    (tmp_path / "empty").write_text("model name :\n")
    assert processor_name(tmp_path / "empty")


def test_governors_of_the_used_cores_are_the_clock_mode(tmp_path: Path) -> None:
    for core, governor in ((0, "schedutil"), (1, "performance"), (2, "schedutil")):
        path = tmp_path / f"cpu{core}" / "cpufreq" / "scaling_governor"
        path.parent.mkdir(parents=True)
        path.write_text(governor + "\n")
    assert clock_mode((0, 2), tmp_path) == "schedutil"
    assert clock_mode((0, 1, 7), tmp_path) == "performance+schedutil"
    assert clock_mode((7,), tmp_path) == "unknown"


@pytest.mark.parametrize("runtime", installed_runtimes())
def test_conditions_of_this_computer_are_complete_and_stable(runtime: str) -> None:
    found = HostDevice(runtime, 2).conditions()
    assert (found.device, found.runtime, found.threads) == ("host", runtime, 2)
    assert found.delegate == BY_RUNTIME[runtime].delegate
    assert found.runtime_version[0].isdigit()
    assert len(found.library_sha256) == 64
    assert HostDevice(runtime, 2).conditions() == found
    assert HostDevice(runtime, 1).conditions().key != found.key


def test_cores_are_those_the_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert HostDevice(installed_runtimes()[0]).conditions().cores == str(min(before))
    finally:
        os.sched_setaffinity(0, before)


def test_an_unknown_runtime_and_no_threads_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="'abacus' is unknown") as caught:
        HostDevice("abacus")
    assert "tflite" in caught.value.next_step
    with pytest.raises(InvalidConfig, match="threads = 0"):
        HostDevice(installed_runtimes()[0], 0)


def test_a_runtime_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Format, "is_installed", property(lambda form: form is not TFLITE))
    assert "tflite" not in host.installed_runtimes()
    with pytest.raises(MissingDependency) as caught:
        HostDevice("tflite")
    assert "pip install" in caught.value.next_step and "'ai-edge-litert>=" in caught.value.next_step


def test_heat_is_that_of_the_hottest_sensor_and_the_fastest_core_in_use(tmp_path: Path) -> None:
    values = {
        "hwmon/hwmon0/name": "nvme", "hwmon/hwmon0/temp1_input": "70000",
        "hwmon/hwmon1/name": "coretemp", "hwmon/hwmon1/temp1_input": "51000", "hwmon/hwmon1/temp2_input": "53500",
        "hwmon/hwmon1/temp3_input": "unreadable",
        "cpu/cpu0/cpufreq/scaling_cur_freq": "1200000", "cpu/cpu1/cpufreq/scaling_cur_freq": "2400000",
        "cpu/cpu2/cpufreq/scaling_cur_freq": "3600000",
    }  # fmt: skip
    for name, text in values.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert read_heat((0, 1), tmp_path / "cpu", tmp_path / "hwmon") == Heat(53.5, clock_mhz=2400.0)
    assert read_heat((0, 1), tmp_path / "none", tmp_path / "none") == Heat()


def test_the_clocks_of_the_used_cores_are_counted(tmp_path: Path) -> None:
    def count(policy: int, cores: str, *ticks: int) -> None:
        folder = tmp_path / "cpufreq" / f"policy{policy}"
        (folder / "stats").mkdir(parents=True, exist_ok=True)
        (folder / "related_cpus").write_text(f"{cores}\n")
        clocks = zip((600000, 2400000, 1200000), ticks, strict=True)
        (folder / "stats" / "time_in_state").write_text("".join(f"{khz} {n}\n" for khz, n in clocks))

    count(0, "0 1", 5, 7, 9)
    count(2, "2 3", 100, 200, 300)
    before = counters((1,), tmp_path)
    count(0, "0 1", 5, 10, 10)  # 30 ms at 2400 MHz and 10 ms at 1200 MHz
    count(2, "2 3", 900, 900, 900)
    passed = counters((1,), tmp_path).since(before)
    assert (passed.clock_ms, passed.clock_mhz_ms, passed.clock_top_ms) == (40.0, 30 * 2400 + 10 * 1200, 30.0)
    assert counters((1,), tmp_path).since(counters((1,), tmp_path)).clock_ms is None
    assert counters((0,), tmp_path / "no such").clock_ms is None
    assert counters((1, 2), tmp_path).clock_ms is None  # one of the clusters may rest
    (tmp_path / "cpufreq" / "policy0" / "stats" / "time_in_state").write_text("no numbers\n")
    assert counters((1,), tmp_path).clock_ms is None


@pytest.mark.skipif(os.name != "posix", reason="Windows does not count them")
def test_involuntary_context_switches_of_this_process_are_counted() -> None:
    before = counters(())
    assert before.switches is not None
    assert counters(()).since(before).switches is not None


EXPORTERS = {"onnxruntime": to_onnx, "tflite": to_tflite}
INSTALLED = [
    "onnxruntime",
    pytest.param(
        "tflite", marks=pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
    ),
]
QUICK = ProtocolConfig(model_passes=3, model_samples=12, pair_rounds=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], bytes]:
    """(runtime, channels) -> the file of a convolution with that many channels."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    for runtime, exporter in EXPORTERS.items():
        if runtime == "tflite" and find_spec("litert_torch") is None:
            continue
        for channels in (4, 48):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3))
            path = folder / f"{runtime}_{channels}"
            exporter(model, (1, 3, 16, 16), path)
            made[runtime, channels] = path.read_bytes()
    return made


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_true_model_is_measured(runtime: str, files: dict[tuple[str, int], bytes]) -> None:
    device = HostDevice(runtime)
    measured = measure_model(device, files[runtime, 48], QUICK)
    assert measured.conditions == device.conditions()
    assert len(measured.passes) == 3
    assert 0 < measured.low_ms <= measured.p50_ms <= measured.p90_ms
    assert measured.ci_low_ms <= measured.p50_ms <= measured.ci_high_ms


@pytest.mark.parametrize("runtime", INSTALLED)
def test_twelve_times_the_channels_take_longer(runtime: str, files: dict[tuple[str, int], bytes]) -> None:
    pair = measure_pair(HostDevice(runtime), files[runtime, 48], files[runtime, 4], QUICK)
    assert pair.speedup > 1.5  # 130 times the work: no busy machine hides that


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_closed_session_does_not_run(runtime: str, files: dict[tuple[str, int], bytes]) -> None:
    with HostDevice(runtime).open(files[runtime, 4]) as session:
        session.run()
    with pytest.raises(RuntimeError, match="closed"):
        session.run()
    session.close()


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize("damage", ["noise", "empty", "half"])
def test_bytes_that_are_no_model_are_refused(runtime: str, damage: str, files: dict[tuple[str, int], bytes]) -> None:
    whole = files[runtime, 48]
    content = {"noise": b"\x07" * 400, "empty": b"", "half": whole[: len(whole) // 2]}[damage]
    with pytest.raises((InvalidInput, DeviceError), match=r"model|cannot|read"):
        HostDevice(runtime).open(content)


def test_a_model_whose_operator_is_unknown_is_refused_with_its_name() -> None:
    node = helper.make_node("Abacus", ["x"], ["y"], domain="invented")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("invented", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    with pytest.raises((InvalidInput, DeviceError), match="ONNX Runtime"):
        HostDevice("onnxruntime").open(model.SerializeToString())


def test_named_dimensions_stand_for_a_batch_of_one() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.checker.check_model(model)
    with HostDevice("onnxruntime").open(model.SerializeToString()) as session:
        assert len(time_session(session, Timing(3, 0.01, 1, 1.0))) == 3


def test_a_text_input_is_refused() -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    value = [helper.make_tensor_value_info(n, TensorProto.STRING, [1]) for n in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    with pytest.raises(InvalidInput, match="type"):
        HostDevice("onnxruntime").open(model.SerializeToString())


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("float32", 0, 1), ("int8", 0, 99), ("uint8", 0, 99), ("bool", 0, 1), ("int64", 0, 0)]
)
def test_inputs_are_seeded_and_within_range(dtype: str, low: int, high: int) -> None:
    made = random_input((4, 50), np.dtype(dtype))
    assert (made.shape, made.dtype) == ((4, 50), np.dtype(dtype))
    assert low <= made.min() <= made.max() <= high
    assert np.array_equal(made, random_input((4, 50), np.dtype(dtype)))
    assert dtype == "int64" or len(np.unique(made)) > 1


def test_inputs_of_other_types_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be filled"):
        random_input((2,), np.dtype("complex64"))


@pytest.mark.parametrize("runtime", INSTALLED)
def test_the_library_that_runs_is_hashed(runtime: str) -> None:
    first, again = HostDevice(runtime).conditions(), HostDevice(runtime).conditions()
    assert first.library_sha256 == again.library_sha256
    assert int(first.library_sha256, 16) > 0
