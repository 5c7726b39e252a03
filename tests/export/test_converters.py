from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_mobile.errors import InvalidInput, MissingDependency, UnsupportedLayer
from amc_mobile.export.converters import EXPORTERS, QUANTIZERS, quantize_tflite, quiet, to_tflite
from amc_mobile.export.parity import parity, run_file, run_onnx, run_tflite, sqnr_db, tflite_ends
from amc_mobile.formats import open_tflite, precision_problem

SHAPE = (1, 3, 10, 8)
NEEDS_TFLITE = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
FORMATS = ["onnx", pytest.param("tflite", marks=NEEDS_TFLITE)]


def three_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Flatten(), nn.Linear(8 * 5 * 4, 5)
    )


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[0, 0, :8, :8]).real[None]


@pytest.mark.parametrize("form", FORMATS)
def test_an_exported_file_computes_what_torch_computes_and_nothing_is_printed(
    form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = three_layers()  # in training mode, as it comes from training
    path = tmp_path / f"model.{form}"
    EXPORTERS[form](model, SHAPE, path)
    printed = capfd.readouterr()
    images = np.random.default_rng(0).standard_normal((6, *SHAPE[1:])).astype(np.float32)
    assert model.training
    with torch.no_grad():
        reference = model.eval()(torch.from_numpy(images)).numpy()
    found = parity(run_file(path, images), reference)
    assert found.max_abs < 1e-5 < found.largest_logit
    assert (found.top1_agreement, found.images) == (1.0, 6)
    assert (printed.out, printed.err) == ("", "")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("form", FORMATS)
def test_layers_of_one_shape_keep_their_weights_in_any_memory_format(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(8))]
    model = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU()))).eval()
    images = np.random.default_rng(0).standard_normal((2, *SHAPE[1:])).astype(np.float32)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as training leaves it
    EXPORTERS[form](model, SHAPE, tmp_path / f"model.{form}")
    with torch.no_grad():
        reference = model(torch.from_numpy(images)).contiguous().numpy()
    assert np.abs(run_file(tmp_path / f"model.{form}", images).reshape(reference.shape) - reference).max() < 1e-5


@pytest.mark.parametrize("form", FORMATS)
def test_a_network_that_cannot_be_exported_leaves_no_file(form: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayer, match="cannot"):
        EXPORTERS[form](Sorted(), SHAPE, tmp_path / f"model.{form}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS[1:])
def test_image_outputs_are_channels_last_in_tflite(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{form}"
    EXPORTERS[form](nn.Conv2d(3, 7, 3), SHAPE, path)
    (target,) = tflite_ends(open_tflite(path.read_bytes()))[1]
    assert tuple(target["shape"]) == (1, 8, 6, 7)
    # Read back as torch has them.
    assert run_file(path, np.zeros(SHAPE, dtype=np.float32)).shape == (1, 7, 8, 6)


def test_a_missing_converter_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)  # what an import of a missing package does
    with pytest.raises(MissingDependency) as caught:
        to_tflite(three_layers(), SHAPE, tmp_path / "model.tflite")
    assert caught.value.next_step.startswith("pip install '")
    assert all(
        name in caught.value.next_step for name in ("'litert-torch>=", "'ai-edge-litert>=", "'litert-quantizer>=")
    )


def test_parity_counts_images_whose_class_changed() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.0]], dtype=np.float32)
    outputs = reference.copy()
    outputs[0] = [0.0, 0.5]
    found = parity(outputs, reference)
    assert (found.max_abs, found.largest_logit, found.top1_agreement) == (1.0, 3.0, 0.75)
    assert found.to_document()["images"] == 4


def test_parity_takes_the_two_formats_only(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"not a \.tflite or \.onnx file"):
        run_file(tmp_path / "model.pt", np.zeros(SHAPE, dtype=np.float32))


def test_output_comes_back_after_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="inside"), quiet():
        print("lost")
        raise ValueError("inside")
    print("heard")
    assert capfd.readouterr().out == "heard\n"


SMALL = (1, 3, 8, 8)
RUN = {"onnx": run_onnx, "tflite": run_tflite}
# Images differ in contrast; the strongest first, where a running average has forgotten them at the end.
CONTRAST = np.geomspace(4, 0.2, 16).reshape(16, 1, 1, 1)
IMAGES = (CONTRAST * np.random.default_rng(0).standard_normal((16, *SMALL[1:]))).astype(np.float32)


@cache
def quantisable(form: str) -> bytes:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 5)
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        EXPORTERS[form](model, SMALL, path)
        return path.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_int8_clips_none_of_the_images_it_was_calibrated_on(form: str) -> None:
    file = quantisable(form)
    int8 = QUANTIZERS[form](file, "int8", IMAGES)
    assert sqnr_db(RUN[form](int8, IMAGES), RUN[form](file, IMAGES)) > 25


@NEEDS_TFLITE
@pytest.mark.parametrize("step", [1, -1])
def test_the_ranges_of_an_int8_tflite_file_are_those_of_all_images_in_any_order(step: int) -> None:
    int8 = quantize_tflite(quantisable("tflite"), "int8", IMAGES[::step])
    scale, _ = open_tflite(int8).get_input_details()[0]["quantization"]
    assert scale == pytest.approx((IMAGES.max() - IMAGES.min()) / 255, rel=1e-5)


def test_what_quantising_may_cost_is_limited_in_points_and_in_noise() -> None:
    assert precision_problem("int8", "top-1", 0.869, 0.776, 540, 7.4) == (
        "int8 costs 9.3 points of top-1, more than 2; its SQNR is 7.4 dB, below 10 dB"
    )
    assert precision_problem("int8", "top-1", 0.869, 0.850, 540, 25.0) == ""
    assert precision_problem("int8", "top-1", 0.869, 0.848, 540, 25.0) == "int8 costs 2.1 points of top-1, more than 2"
    assert precision_problem("int8", "top-1", 1.0, 0.875, 8, 25.0) == ""  # one image of eight
