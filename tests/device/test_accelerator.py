"""--accelerator gpu, on the software GPU that Chromium brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_mobile.device.accelerator import runner
from amc_mobile.device.conditions import Conditions
from amc_mobile.device.host import HostDevice
from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.export.converters import to_tflite
from amc_mobile.workflows.devices import choose_conditions, device_of
from amc_mobile.workflows.workspace import Settings, silent

ROOT = Path(__file__).parents[2]
DRIVER = next(
    filter(Path.is_file, (Path(folder) / "vk_swiftshader_icd.json" for folder in (
        "/usr/lib/chromium", "/usr/lib64/chromium-browser", "/opt/google/chrome"))), None,
)  # fmt: skip
NEEDS_TFLITE = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
NEEDS_SOFTWARE_GPU = pytest.mark.skipif(DRIVER is None, reason="no Chromium with a software GPU is installed")


class Gathered(nn.Module):
    """An operator that LiteRT's GPU accelerator does not have, alone or behind one that it has."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)[:, :, [3, 1, 0, 2]]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all.tflite, part.tflite and none.tflite."""
    folder = tmp_path_factory.mktemp("models")
    whole = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    for name, model in {"all": whole, "part": Gathered(whole), "none": Gathered(nn.Identity())}.items():
        to_tflite(model.eval(), (1, 3, 16, 16), folder / f"{name}.tflite")
    return folder


def measure(file: Path, *words: str, driver: Path | str | None = DRIVER) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "VK_ICD_FILENAMES": str(driver), "VK_DRIVER_FILES": str(driver),
        "LD_LIBRARY_PATH": str(DRIVER.parent if DRIVER else ""),
    }  # fmt: skip
    command = [sys.executable, "-m", "amc_mobile", "measure", str(file), "--accelerator", "gpu", "--waive", "BUSY"]
    return subprocess.run(
        [*command, "--quiet", "--json", *words], env=environment, cwd=file.parent, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


@NEEDS_TFLITE
@NEEDS_SOFTWARE_GPU
def test_what_runs_on_the_gpu_as_a_whole_is_measured_and_nothing_else_is_printed(models: Path) -> None:
    done = measure(models / "all.tflite")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["conditions"]["accelerator"] == "gpu"
    assert document["conditions"]["delegate"].startswith("WebGPU, Vulkan, SwiftShader")
    assert document["p50_ms"] > 0
    assert "FALLBACK" not in document["flags"]


@NEEDS_TFLITE
@NEEDS_SOFTWARE_GPU
@pytest.mark.parametrize("name", ["part", "none"])
def test_what_does_not_is_an_error_that_names_the_operator_or_flagged_where_that_is_waived(
    name: str, models: Path
) -> None:
    done = measure(models / f"{name}.tflite")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["kind"], error["message"]) == (
        1,
        "DeviceError",
        "the model: the GPU cannot run GATHER_ND",
    )
    assert "--waive FALLBACK" in error["next"]
    done = measure(models / f"{name}.tflite", "--waive", "FALLBACK")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["conditions"]["accelerator"] == "gpu and cpu"
    assert "FALLBACK" in document["flags"]


@NEEDS_TFLITE
def test_without_a_gpu_nothing_is_measured(models: Path, tmp_path: Path) -> None:
    done = measure(models / "all.tflite", driver=tmp_path / "no driver")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["message"]) == (1, "the model: LiteRT finds no GPU on this computer")
    assert "--accelerator cpu" in error["next"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (Settings(accelerator="npu"), "no runtime drives an NPU"),
        (Settings(accelerator="fpga"), "'fpga' is unknown"),
        (Settings(accelerator="gpu", runtime="onnxruntime"), "onnxruntime drives the CPU only"),
        (Settings(accelerator="gpu", device="pixel"), "phones are measured on their CPU only"),
    ],
)
def test_what_no_runtime_can_do_is_refused(settings: Settings, error: str) -> None:
    with pytest.raises(InvalidConfig, match=error):
        device_of(settings, settings.runtime or "tflite", silent)


def test_conditions_of_the_cpu_stay_what_they_were_and_are_never_those_of_a_gpu() -> None:
    cpu = HostDevice("onnxruntime").conditions()
    assert "accelerator" not in cpu.to_document()
    gpu = Conditions.from_document({**cpu.to_document(), "accelerator": "gpu"})
    assert gpu.key != cpu.key
    assert choose_conditions([cpu, gpu], Settings(runtime="onnxruntime", accelerator="gpu")) == gpu
    assert choose_conditions([cpu, gpu], Settings(runtime="onnxruntime")) == cpu
    with pytest.raises(InvalidInput, match=r"1 thread\(s\), gpu"):
        choose_conditions([cpu], Settings(runtime="onnxruntime", accelerator="gpu"))


class Buffer:
    def __init__(self, name: str, calls: list[Any]) -> None:
        self.name, self.calls = name, calls

    def write(self, values: Any) -> None:
        self.calls.append(("write", self.name, values.shape, values.dtype.name))

    def read(self, count: int, kind: type) -> None:
        self.calls.append(("read", self.name, count, np.dtype(kind).name))


class Submitted:
    """A compiled model whose work ends when its outputs are read."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def get_signature_list(self) -> dict[str, Any]:
        return {"main": {"inputs": ["x"], "outputs": ["a", "b"]}}

    def get_input_tensor_details(self, key: str) -> dict[str, Any]:
        return {"x": {"shape": [1, 2, 2, 3], "dtype": "float32"}}

    def get_output_tensor_details(self, key: str) -> dict[str, Any]:
        return {"b": {"shape": [1, 5], "dtype": "int8"}, "a": {"shape": [1, 2, 4], "dtype": "float32"}}

    def create_input_buffers(self, signature: int) -> list[Buffer]:
        return [Buffer("x", self.calls)]

    def create_output_buffers(self, signature: int) -> list[Buffer]:
        return [Buffer("a", self.calls), Buffer("b", self.calls)]

    def run_by_index(self, signature: int, inputs: list[Buffer], outputs: list[Buffer]) -> None:
        self.calls.append(("run",))


def test_an_inference_ends_when_every_output_was_read() -> None:
    model = Submitted()
    run, _ = runner(model, lambda shape, dtype: torch.zeros(*shape).numpy().astype(dtype))
    assert model.calls[0] == ("write", "x", (1, 2, 2, 3), "float32")
    model.calls.clear()
    run()
    assert model.calls == [("run",), ("read", "a", 8, "float32"), ("read", "b", 5, "int8")]
