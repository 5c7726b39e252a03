from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from amc_mobile.device.device import Timing, time_session
from amc_mobile.device.host import HostDevice, random_input
from amc_mobile.errors import DeviceError, InvalidInput
from amc_mobile.export.converters import to_onnx, to_tflite
from amc_mobile.latency.protocol import ProtocolConfig, measure_model, measure_pair

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
