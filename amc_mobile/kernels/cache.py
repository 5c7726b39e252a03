"""Builds templates by true exports and keeps the exported files, since one conversion takes about 12 s."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import nn

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import ChannelGroups
from amc_mobile.channels.ids import Ids
from amc_mobile.errors import CorruptFile, InvalidConfig
from amc_mobile.export.to_onnx import to_onnx
from amc_mobile.export.to_tflite import to_tflite
from amc_mobile.kernels.graph import Decoder
from amc_mobile.kernels.template import Template
from amc_mobile.kernels.widths import WidthCode, choose_widths

FORMAT_VERSION = 1
EXPORTERS = {"tflite": to_tflite, "onnxruntime": to_onnx}
SUFFIXES = {"tflite": ".tflite", "onnxruntime": ".onnx"}
EXPORTER_PACKAGES = {"tflite": ("torch", "litert-torch"), "onnxruntime": ("torch", "onnx", "onnxscript")}


def load_or_build(
    model: nn.Module,
    groups: ChannelGroups,
    runtime: str,
    folder: Path,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Template:
    """The template of `model` for a runtime; exports only what `folder` does not hold yet.

    The exported files are kept whole and decoded anew at each load, so that nothing but them has to be trusted.
    """
    if runtime not in EXPORTERS:
        raise InvalidConfig(f"runtime {runtime!r} has no template", next_step="use tflite or onnxruntime")
    code = choose_widths(groups.sizes)
    traces = len(code.widths) - 1
    kept = [_trace_channels(code, trace) for trace in range(1, traces + 1)]
    place = folder / _fingerprint(model, groups, runtime, code)
    contents = []
    for trace in range(traces + 1):
        path = place / f"trace_{trace}{SUFFIXES[runtime]}"
        if progress is not None:
            progress(f"export for {runtime}", trace, traces + 1)
        if not path.exists():
            cut = dict(zip(groups.names, kept[trace - 1], strict=True)) if trace else {}
            EXPORTERS[runtime](surgery.apply(model, groups, cut), (1, *groups.input_shape[1:]), path)
        contents.append(path.read_bytes())
    if progress is not None:
        progress(f"export for {runtime}", traces + 1, traces + 1)
    return decode(groups, runtime, contents, code, kept, source=place)


def decode(
    groups: ChannelGroups,
    runtime: str,
    contents: list[bytes],
    code: WidthCode,
    kept: list[list[Ids]],
    *,
    source: Path,
) -> Template:
    """`contents`: the exported original, then one export per trace with the channels `kept` of each group."""
    form = _format(runtime)
    try:
        models = [form.parse(content) for content in contents]
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise CorruptFile(
            source, f"an exported file cannot be read ({error})", next_step="delete the folder"
        ) from error
    graphs = [form.to_graph(model) for model in models]
    labels = Decoder(groups, code, kept).decode(graphs)
    if runtime == "tflite":
        from amc_mobile.kernels.tflite import TfliteTemplate

        return TfliteTemplate(groups, models[0], graphs[0], labels)
    from amc_mobile.kernels.onnx import OnnxTemplate

    return OnnxTemplate(groups, models[0], graphs[0], labels)


def _format(runtime: str) -> ModuleType:
    if runtime == "tflite":
        from amc_mobile.kernels import tflite

        return tflite
    from amc_mobile.kernels import onnx

    return onnx


def _trace_channels(code: WidthCode, trace: int) -> list[Ids]:
    """Random channels, so that which of them stay can be recognised in the exported arrays."""
    rng = np.random.default_rng(trace)
    return [
        np.sort(rng.choice(int(full), int(width), replace=False)).astype(np.int64)
        for full, width in zip(code.widths[0], code.widths[trace], strict=True)
    ]


def _fingerprint(model: nn.Module, groups: ChannelGroups, runtime: str, code: WidthCode) -> str:
    digest = hashlib.sha256()
    versions = {name: importlib.metadata.version(name) for name in EXPORTER_PACKAGES[runtime]}
    facts = [FORMAT_VERSION, runtime, groups.input_shape, code.widths.tolist(), versions, str(model)]
    digest.update(json.dumps(facts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"{runtime}-{digest.hexdigest()[:16]}"
