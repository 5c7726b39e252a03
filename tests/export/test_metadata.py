"""Names and metadata in the files themselves, read back by the runtimes and by this package."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.export.converters import EXPORTERS, QUANTIZERS
from amc_mobile.export.metadata import (
    METADATA_KEY,
    BudgetInfo,
    ImageInput,
    LatencyInfo,
    NetworkInfo,
    ShippedFile,
    TensorInfo,
    describe_files,
    graph_sha256,
    inspect,
    kotlin_source,
    named,
    read_ends,
    with_metadata,
)
from amc_mobile.export.parity import run_onnx, run_tflite, sqnr_db
from amc_mobile.formats import open_onnx, open_tflite
from amc_mobile.packing import forward_names, join, pack

SHAPE = (1, 3, 8, 6)
NEEDS_TFLITE = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
FORMATS = ["onnx", pytest.param("tflite", marks=NEEDS_TFLITE)]
RUN = {"onnx": run_onnx, "tflite": run_tflite}
INFO = NetworkInfo(
    "1.2.3", "net.py:build", "imagefolder", "classification",
    ImageInput("RGB", (0.0, 255.0), 255.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "crop", 9),
    ("Löwe", "line\nbreak"), "top-1", "test images", {"0": (8, 4)},
)  # fmt: skip
BUDGET = BudgetInfo("0.5 of the original", "ms", 1.25, "pixel")
LATENCY = LatencyInfo(1.0, 0.9, 1.1, 1.2, 2.5, "Pixel 6", "Tensor", "14", "tflite", "2.3.0", "XNNPACK", 2)


class Classifier(nn.Module):
    """Its last layer is called as its output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.logits = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
        return self.logits(torch.relu(self.image(image)).mean((2, 3)) * scale)


class Stereo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, right: Tensor, left: Tensor) -> dict[str, Any]:
        maps = self.conv(right) - self.conv(left)
        return {"zoom": maps, "parts": [maps.mean((2, 3)), maps.amax((2, 3))], "area": left.mean((1, 2, 3))[:, None]}


@cache
def exported(form: str, precision: str = "float32") -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        EXPORTERS[form](Classifier(), SHAPE, path)
        images = np.random.default_rng(0).standard_normal((8, *SHAPE[1:])).astype(np.float32)
        content = path.read_bytes()
        return content if precision == "float32" else QUANTIZERS[form](content, precision, images)


def shipped(form: str, precision: str = "float32") -> ShippedFile:
    return ShippedFile.of(
        exported(form, precision), form, precision, INFO, names=forward_names(Classifier(), "logits"),
        output_content="logits", budgets=(BUDGET,),
    )  # fmt: skip


def runtime_names(content: bytes, form: str) -> tuple[list[str], list[str]]:
    if form == "onnx":
        session = open_onnx(content)
        return [end.name for end in session.get_inputs()], [end.name for end in session.get_outputs()]
    interpreter = open_tflite(content)
    ((_, signature),) = interpreter.get_signature_list().items()
    tensors = [
        [end["name"] for end in side] for side in (interpreter.get_input_details(), interpreter.get_output_details())
    ]
    assert [set(side) for side in tensors] == [set(signature["inputs"]), set(signature["outputs"])]
    return tensors[0], tensors[1]


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_shipped_file_has_the_names_of_the_original_and_computes_what_it_did(form: str, precision: str) -> None:
    content = shipped(form, precision).content
    assert runtime_names(content, form) == (["image"], ["logits"])
    images = np.random.default_rng(1).standard_normal((4, *SHAPE[1:])).astype(np.float32)
    assert np.array_equal(RUN[form](content, images), RUN[form](exported(form, precision), images))


@NEEDS_TFLITE
def test_litert_compiles_a_shipped_file_and_finds_its_names(tmp_path: Path) -> None:
    from ai_edge_litert.compiled_model import CompiledModel

    (tmp_path / "model.tflite").write_bytes(shipped("tflite").content)
    model = CompiledModel.from_file(str(tmp_path / "model.tflite"))
    assert model.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}


@pytest.mark.parametrize("form", FORMATS)
def test_several_inputs_and_outputs_keep_their_names_and_their_order(form: str, tmp_path: Path) -> None:
    network, shapes = Stereo(), ((3, 5, 5), (3, 5, 5))
    left, right = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    packed = join([right, left])[:, :, None, None]
    reference = join(list(torch.utils._pytree.tree_leaves(network(right, left)))).detach()
    pack(network, packed[:1], shapes)
    names = forward_names(network, "values")
    assert names == (["right", "left"], ["zoom", "parts", "parts_2", "area"])
    EXPORTERS[form](network, (1, *packed.shape[1:]), tmp_path / "model")
    content = named((tmp_path / "model").read_bytes(), form, *names)
    assert runtime_names(content, form) == names
    assert [end.name for end in read_ends(content, form).outputs] == names[1]
    assert np.allclose(RUN[form](content, packed.numpy()), reference.numpy(), atol=1e-5)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", "float32"), ("int8", "int8"), ("float16", "float32")])
@NEEDS_TFLITE
def test_scales_of_a_tflite_file_are_those_of_its_tensors(precision: str, dtype: str) -> None:
    file = shipped("tflite", precision)
    details = open_tflite(file.content).get_input_details()[0]
    (end,) = file.info.inputs
    assert (end.dtype, end.shape, end.layout, end.content) == (dtype, (1, 8, 6, 3), "NHWC", "image")
    assert (end.scale or 0.0, end.zero_point or 0) == pytest.approx(details["quantization"])


@pytest.mark.parametrize("form", FORMATS)
def test_metadata_are_read_back_and_filled_in_without_moving_a_byte(form: str) -> None:
    before = shipped(form)
    after = before.filled(accuracy=0.75, latency=LATENCY, budgets=(BUDGET,))
    properties = read_ends(after.content, form).properties
    document = json.loads(properties[METADATA_KEY])
    assert document["labels"] == ["Löwe", "line\nbreak"] and document["plan"] == {"0": [8, 4]}
    assert document["latency"]["p50_ms"] == 1.0 and document["accuracy"] == 0.75
    assert document["inputs"][0]["name"] == "image" and document["image"]["mean"] == [0.5, 0.5, 0.5]

    changed = [i for i, pair in enumerate(zip(before.content, after.content, strict=True)) if pair[0] != pair[1]]
    start = after.content.index(after.text.encode())
    assert changed and start <= min(changed) <= max(changed) < start + len(after.text)
    assert before.graph_sha256 == after.graph_sha256 == graph_sha256(after.content, properties[METADATA_KEY])


def test_long_texts_of_a_phone_do_not_outgrow_the_room_for_the_measurement() -> None:
    texts = ("ä" * 5000,) * 3
    long = LatencyInfo(*[1.23456e-05] * 5, *texts, "r" * 5000, "v" * 5000, "d" * 5000, 8)  # type: ignore[arg-type]
    assert len(shipped("onnx").filled(latency=long).content) == len(shipped("onnx").content)


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (lambda self, x: x, ["x"]),
        (lambda self, *images: images, ["images"]),
        (lambda self, image, /, flag=True, **rest: image, ["image"]),
    ],
)
def test_inputs_are_called_by_the_arguments_of_forward(forward: Any, names: list[str]) -> None:
    network = type("Own", (nn.Module,), {"forward": forward})()
    assert forward_names(network, "logits") == (names, ["logits"])
    assert forward_names(network, "values")[1] == ["output"]


@pytest.mark.parametrize("form", FORMATS)
def test_inspect_tells_how_to_feed_a_file_and_what_was_measured(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{form}"
    file = shipped(form).filled(accuracy=0.75, latency=LATENCY, budgets=(replace(BUDGET, met=True),))
    path.write_bytes(file.content)
    description = inspect(path)
    assert (description.network, description.info) == (INFO, file.info)
    assert description.inputs == file.info.inputs and description.graph_sha256 == file.graph_sha256
    text = description.text()
    for part in (
        "input   image 1 x ", ": logits", "RGB pixels 0 to 255, input = (pixel / 255 - mean) / std", "mean 0.5, 0.5, ",
        "the shorter side to 9 pixels", "labels: Löwe, line?break", "4 of 8 kept in 1 groups", "top-1 75.0%",
        "p50 1.000 ms (95 % CI 0.900-1.100), original 2.500 ms; on Pixel 6 (Tensor)", "(1.25 ms): met",
    ):  # fmt: skip
        assert part in text
    assert json.loads(json.dumps(description.document()))["info"]["latency"]["threads"] == 2


@pytest.mark.parametrize("form", FORMATS)
def test_inspect_reads_files_of_other_tools(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"other.{form}"
    path.write_bytes(with_metadata(exported(form), form, '{"format_version": 1, "mine": "\x1b[31m"}'))
    description = inspect(path)
    assert description.network is None and description.info is None and description.operators > 2
    assert [end.content for end in (*description.inputs, *description.outputs)] == ["", ""]
    assert "\x1b" not in description.text()
    path.write_bytes(exported(form))
    assert {"onnx": "pytorch", "tflite": "min_runtime_version"}[form] in description.text()


@pytest.mark.parametrize("form", FORMATS)
def test_a_broken_file_is_named(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{form}"
    content = exported(form)
    for broken in (content[: len(content) // 2], content[:8] + b"\xff" * 400):
        path.write_bytes(broken)
        with pytest.raises(CorruptFile, match=f"cannot be read as .{form}"):
            inspect(path)


def test_files_of_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(InvalidInput, match=r"not a \.tflite or \.onnx file"):
        inspect(tmp_path / "model.pt")
    with pytest.raises(InvalidInput, match="no file"):
        inspect(tmp_path / "none.onnx")


def folder_with(tmp_path: Path, *files: tuple[str, str]) -> Path:
    described = {f"model_{precision}.{form}": shipped(form, precision) for form, precision in files}
    for name, file in described.items():
        (tmp_path / name).write_bytes(file.content)
    describe_files(tmp_path, described, kotlin=True)
    return tmp_path


@pytest.mark.parametrize(("precision", "least_db"), [("float32", 100), ("int8", 20)])
@pytest.mark.parametrize("form", FORMATS)
def test_the_python_of_the_docs_feeds_a_file(form: str, precision: str, least_db: float, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, (form, precision))
    page = (Path(__file__).parents[2] / "docs" / "shipping.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "feeding.py").write_text(code)
    spec = importlib.util.spec_from_file_location("feeding", tmp_path / "feeding.py")
    assert spec is not None and spec.loader is not None
    feeding = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(feeding)
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 6, 3))
    given = np.concatenate([feeding.outputs(folder, f"model_{precision}.{form}", picture) for picture in pictures])
    with torch.no_grad():
        images = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        reference = Classifier()(images.float()).numpy()
    assert sqnr_db(given, reference) > least_db


@NEEDS_TFLITE
def test_the_kotlin_file_has_the_values_of_the_files(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ("tflite", "float32"), ("tflite", "int8"), ("onnx", "float32"))
    kotlin = (folder / "Classify.kt").read_text()
    (source,) = shipped("tflite", "int8").info.inputs
    for part in (
        'context.assets, "model_int8.tflite"', "WIDTH = 6", "HEIGHT = 8", "DIVISOR = 255.0f",
        "MEAN = floatArrayOf(0.5f, 0.5f, 0.5f)", "val scale = 9f / minOf", f"values[it] / {source.scale}f",
        f"+ {source.zero_point}).coerceIn", 'open("model_float32.onnx")', "longArrayOf(1, 3, 8, 6)", '"image" to image',
        'results.get("logits")', "fun logits(picture: Bitmap)", "outputs.fold(0f)", "litert:litert:",
    ):  # fmt: skip
        assert part in kotlin, part
    assert kotlin.count("{") == kotlin.count("}") and kotlin.count("(") == kotlin.count(")")
    assert not re.search(r"\n\n\n|[ \t]\n|\{%|\{\{", kotlin)
    assert (folder / "labels.txt").read_text() == "Löwe\nline break\n"
    grey = replace(
        INFO, labels=(), image=ImageInput("grey", (0.0, 255.0), 255.0, (0.3,), (0.2,), "stretch")
    )  # fmt: skip
    plain = kotlin_source(
        grey, {"m.onnx": replace(shipped("onnx").info, outputs=(TensorInfo("y", (1, 2), "float32"),))}
    )
    assert "0.299f * red" in plain and "createScaledBitmap(picture, WIDTH, HEIGHT, true)" in plain
    assert "fun outputs(" in plain and "LiteRt" not in plain and "labels" not in plain and "Prediction" not in plain
