"""What older versions stored is still read: keys, a latency table and a run's folder, kept in tests/golden/guards.

None of it is ever renewed: under another key a kernel is measured again, and users have tables and runs like these.

How the files were made, by amc-mobile before its first release, on a two-convolution network with the digits:
`train`, `profile --device host`, `search --latency-ratio 0.7 --episodes 12 --policy random`, `finetune`,
`export --tflite --onnx` and `report`. Then the processor, the system and the run got neutral names, table.sqlite was
reduced to six kernels and two whole models, and two of the kernels were adopted (`LatencyTable.adopt`) under newer
conditions. The weights were left out: the records hold the SHA-256 of `WEIGHTS` in place of theirs.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amc_mobile.device.conditions import Conditions
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.kernels.kernel import Kernel, Operator
from amc_mobile.latency.table import LatencyTable
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.workflows.report import report_run
from amc_mobile.workflows.runs import RECORDS, ReferenceRecord, Run
from amc_mobile.workflows.workspace import Workspace

GUARDS = Path(__file__).parent / "golden" / "guards"
RUN = GUARDS / "run"
WEIGHTS = {"pruned": b"pruned", "finetuned": b"finetuned"}

_CONVOLUTION = (
    ("dilationHFactor", 1), ("dilationWFactor", 1), ("fusedActivationFunction", 1), ("padding", 0),
    ("strideH", 2), ("strideW", 2),
)  # fmt: skip
_WINDOW = (("auto_pad", "NOTSET"), ("dilations", (1, 1)), ("group", 1), ("kernel_shape", (3, 3)))
_WEIGHTED = (False, True, True)
KERNELS = {
    "tflite conv": Kernel(
        "tflite",
        (Operator("CONV_2D", ((1, 32, 32, 3), (16, 3, 3, 3), (16,)), _WEIGHTED, ((1, 16, 16, 16),), _CONVOLUTION),),
    ),
    "tflite pad and depthwise": Kernel(
        "tflite",
        (
            Operator(
                "PAD", ((1, 16, 16, 24), (4, 2)), (False, True), ((1, 18, 18, 24),),
                (("constant1", (0, 0, 1, 1, 1, 1, 0, 0)),),
            ),
            Operator(
                "DEPTHWISE_CONV_2D", ((1, 18, 18, 24), (1, 3, 3, 24), (24,)), _WEIGHTED, ((1, 8, 8, 24),),
                (("depthMultiplier", 1), *_CONVOLUTION),
            ),
        ),
    ),
    "tflite linear": Kernel(
        "tflite",
        (Operator("FULLY_CONNECTED", ((1, 64), (10, 64), None), _WEIGHTED, ((1, 10),), (("keepNumDims", False),)),),
    ),
    "tflite int8 conv": Kernel(
        "tflite",
        (Operator("CONV_2D", ((1, 8, 8, 8), (16, 1, 1, 8), (16,)), _WEIGHTED, ((1, 8, 8, 16),), _CONVOLUTION, "int8"),),
    ),
    "tflite float16 weights": Kernel(
        "tflite",
        (
            Operator("DEQUANTIZE", ((16, 1, 1, 8),), (True,), ((16, 1, 1, 8),), (), "float32/float16"),
            Operator(
                "CONV_2D", ((1, 8, 8, 8), (16, 1, 1, 8), (16,)), (False, False, True), ((1, 8, 8, 16),), _CONVOLUTION
            ),
        ),
    ),
    "onnx conv and relu": Kernel(
        "onnxruntime",
        (
            Operator(
                "Conv", ((1, 3, 32, 32), (16, 3, 3, 3), (16,)), _WEIGHTED, ((1, 16, 32, 32),),
                (*_WINDOW, ("pads", (1, 1, 1, 1)), ("strides", (1, 1))),
            ),
            Operator("Relu", ((1, 16, 32, 32),), (False,), ((1, 16, 32, 32),)),
        ),
    ),
    "onnx depthwise": Kernel(
        "onnxruntime",
        (
            Operator(
                "Conv", ((1, 24, 16, 16), (24, 1, 3, 3)), (False, True), ((1, 24, 16, 16),),
                (*_WINDOW[:2], ("group", 24), _WINDOW[3], ("pads", (1, 1, 1, 1)), ("strides", (1, 1))),
            ),
        ),
    ),
    "onnx linear": Kernel(
        "onnxruntime",
        (
            Operator(
                "Gemm", ((1, 64), (10, 64), (10,)), _WEIGHTED, ((1, 10),),
                (("alpha", 1.0), ("beta", 1.0), ("transA", 0), ("transB", 1)),
            ),
        ),
    ),
    "onnx uint8 conv": Kernel(
        "onnxruntime",
        (
            Operator("QuantizeLinear", ((1, 8, 8, 8), (), ()), _WEIGHTED, ((1, 8, 8, 8),), (("axis", 1),), "uint8"),
            Operator(
                "Conv", ((1, 8, 8, 8), (16, 8, 3, 3), (16,)), _WEIGHTED, ((1, 16, 8, 8),),
                (*_WINDOW, ("pads", (1, 1, 1, 1)), ("strides", (1, 1))), "uint8",
            ),
        ),
    ),
}  # fmt: skip

_HOST = Conditions(
    device="host", soc="Test processor", os="Linux 6.1 x86_64", runtime="tflite", runtime_version="2.3.0",
    library_sha256="ab" * 32, delegate="XNNPACK", threads=1, cores="0-1", clock_mode="unknown",
)  # fmt: skip
_LAYOUT = OnnxLayout(
    block=16, dense_from=4, dense_multiple=16, pool_multiples={"MaxPool": 16}, on_blocks=frozenset({"Relu", "Add"}),
    fused_after={"Conv": frozenset({"Relu", "Clip"})}, sums_fused_before=frozenset({"", "Relu"}),
)  # fmt: skip
_PHONE = Conditions(
    device="Google Pixel 4", soc="SM8150", os="Android 13 google/flame/build", runtime="tflite",
    runtime_version="2.17.0", library_sha256="cd" * 32, delegate="XNNPACK", threads=4, cores="4-7",
    clock_mode="unlocked schedutil 4-7<=1200MHz", unit="1a2b3c4d",
)  # fmt: skip
CONDITIONS = {
    "host": _HOST,
    "host with layout": replace(
        _HOST, runtime="onnxruntime", runtime_version="1.22.0", delegate="CPU", layout=_LAYOUT.text()
    ),
    "phone with limited clocks": _PHONE,
    "phone of an unknown unit": replace(_PHONE, clock_mode="unlocked schedutil", unit=""),
    "table of another tool": replace(_HOST, protocol_version=0),
}


@pytest.mark.parametrize(("kind", "subjects"), [("kernels", KERNELS), ("conditions", CONDITIONS)])
def test_keys_are_what_they_were(kind: str, subjects: dict[str, Kernel | Conditions]) -> None:
    assert {name: subject.key for name, subject in subjects.items()} == _json(GUARDS / "keys.json")[kind]


def test_an_old_table_is_read(tmp_path: Path) -> None:
    with LatencyTable(shutil.copy(GUARDS / "table.sqlite", tmp_path)) as table:
        newer, host = sorted(table.conditions(), key=lambda conditions: conditions.os, reverse=True)
        kernels = table.kernels(host)
        models = table.models(host, "net.py:build x1.0 (1, 3, 32, 32)")
        seen = {
            "kernels": {kernel.label: [len(kernel.passes), kernel.low_ms] for kernel in kernels.values()},
            "models": [[widths.tolist(), len(model.passes), model.p50_ms] for widths, model in models],
            "adopted": {kernel.label: kernel.low_ms for kernel in table.kernels(newer).values()},
            "adoptions": [[*keys, ratio] for keys, ratio in table.adoptions().items()],
        }
        documents = table.kernel_documents()
    assert seen == _json(GUARDS / "table.json")
    assert {Kernel.from_document(document).key for document in documents.values()} == set(kernels)


@pytest.mark.parametrize("kind", [kind for kind, name in RECORDS.items() if kind is not ReferenceRecord])
def test_a_record_of_an_old_run_is_written_again_as_it_was(kind: type, tmp_path: Path) -> None:
    name = f"{RECORDS[kind]}.json"
    Run(tmp_path).save(Run(RUN).load(kind))
    assert (tmp_path / name).read_bytes() == (RUN / name).read_bytes()


def test_an_old_episode_log_goes_on(tmp_path: Path) -> None:
    for suffix in ("csv", "json"):
        shutil.copy(RUN / f"episodes.{suffix}", tmp_path)
    log = EpisodeLog(tmp_path / "episodes.csv")
    assert (len(log.rows), log.rows[0].widths, log.pending) == (_json(RUN / "search.json")["episodes"], (4, 16), None)
    log.start(log.policy_document, _json(RUN / "episodes.json")["settings"])
    assert log.path.read_bytes() == (RUN / "episodes.csv").read_bytes()


def test_an_old_run_gives_the_same_report(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    shutil.copytree(RUN, run, ignore=shutil.ignore_patterns("report.json", "layers.csv"))
    for stage, content in WEIGHTS.items():
        (run / f"{stage}.safetensors").write_bytes(content)
    report_run(Workspace(tmp_path), run="run")
    old, new = _json(RUN / "report.json"), _json(run / "report.json")
    # Later versions say more, and show the ms of a search on the scale of the export.
    scale = old["budget"]["limit"] / old["budget"]["searched_limit"]
    band = old["predictions"]["band"]
    for episode in old["episodes"]:
        episode["predicted"] *= scale / (1 + band)
        episode["measured_ms"] = episode["measured_ms"] and episode["measured_ms"] * scale
    for point in (*old["predictions"]["points"], old["pruned"]):
        point.update({key: point[key] * scale for key in ("predicted_ms", "measured_ms") if key in point})
    new["predictions"]["points"] = [p for p in new["predictions"]["points"] if p["kind"] != "final"]
    renewed = {"created", "program_version", "verdict"}
    assert _same_keys(new, old, leaving_out=renewed) == {key: old[key] for key in old.keys() - renewed}
    for name in ("status", "cost", "limit"):
        assert new["verdict"][name] == old["verdict"][name]
    rows, old_rows = (list(csv.DictReader((folder / "layers.csv").read_text().splitlines())) for folder in (run, RUN))
    assert [{key: row[key] for key in old_rows[0]} for row in rows] == old_rows
    assert (run / "report.html").exists()


def _same_keys(new: Any, old: Any, *, leaving_out: Collection[str] = ()) -> Any:
    """`new` without the keys that `old` does not have; numbers as `approx` of what they are."""
    if isinstance(old, dict):
        return {key: _same_keys(new[key], value) for key, value in old.items() if key not in leaving_out}
    if isinstance(old, list):
        return [_same_keys(*pair) for pair in zip(new, old, strict=True)]
    return pytest.approx(new) if isinstance(new, float) else new


def _json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document
