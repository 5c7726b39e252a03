"""Builds templates by true exports and keeps the exported files, since one conversion takes about 12 s."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_mobile import store
from amc_mobile.channels import surgery
from amc_mobile.channels.groups import ChannelGroups
from amc_mobile.channels.structure import Ids
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, UnsupportedLayer
from amc_mobile.export.converters import EXPORTERS
from amc_mobile.export.quantize import QUANTIZERS, stand_in_images
from amc_mobile.formats import BY_RUNTIME, FLOAT32, TFLITE
from amc_mobile.kernels.kernel import Graph
from amc_mobile.kernels.labels import (
    MAX_TRACES,
    AmbiguousError,
    UndecodableError,
    Vocabulary,
    WidthCode,
    by_output,
    choose_widths,
    decode,
    in_order,
    overlay,
)
from amc_mobile.kernels.template import Template

FORMAT_VERSION = 2  # of the folder's files. 1: exports and behaviour.json; 2: .onnx int8 has unsigned activations
Progress = Callable[[str, int, int], None]


def load_or_build(
    model: nn.Module,
    groups: ChannelGroups,
    runtime: str,
    folder: Path,
    *,
    precision: str = FLOAT32,
    layout: str = "",
    progress: Progress | None = None,
) -> Template:
    """The template of `model` for a runtime and a precision; exports only what `folder` does not hold yet.

    Files of other precisions are the float32 file quantised with stand-in images: for latency, not for accuracy.
    The exported files are kept whole and decoded anew at each load, so that nothing but them has to be trusted.
    `layout`: what ONNX Runtime does with graphs on the device, as in its conditions. `progress`: called with a stage,
    how many exports are done and how many there will be. Raises UnsupportedLayer, naming the operator, when the
    exported graph cannot be decoded, and what the exporter raises.
    """
    if runtime not in BY_RUNTIME:
        raise InvalidConfig(f"runtime {runtime!r} has no template", next_step=f"use {' or '.join(BY_RUNTIME)}")
    vocabulary = Vocabulary(groups)
    traces = 1
    while True:
        try:
            code = choose_widths(groups.sizes, vocabulary.expressions, traces=traces)
        except UndecodableError as error:
            raise UnsupportedLayer("", str(error), next_step="prune a smaller part of the network") from error
        files = _Files(model, groups, runtime, folder, code)
        try:
            return _decoded(groups, runtime, vocabulary, files, precision, OnnxLayout.parse(layout), progress)
        except AmbiguousError as error:
            traces = code.traces + 1
            if traces > MAX_TRACES:
                raise UnsupportedLayer("", f"{error}, in {MAX_TRACES} pruned networks") from error


def _decoded(
    groups: ChannelGroups,
    runtime: str,
    vocabulary: Vocabulary,
    files: _Files,
    precision: str,
    layout: OnnxLayout,
    progress: Progress | None,
) -> Template:
    form = file_format(runtime)
    parsed = []
    for trace in range(files.code.traces + 1):
        if progress is not None:
            progress(f"export for {runtime}", trace, files.code.traces + 1)
        parsed.append(files.parsed(trace, form))
    if progress is not None:
        progress(f"export for {runtime}", files.code.traces + 1, files.code.traces + 1)
    models, graphs = [model for model, _ in parsed], [graph for _, graph in parsed]
    kept = [files.kept(trace) for trace in range(1, len(graphs))]
    labels = decode(graphs, files.code, vocabulary, kept)
    model, graph = models[0], graphs[0]
    if precision != FLOAT32:
        model, graph = files.quantised(precision, form)
        partners = (in_order if runtime == TFLITE.runtime else by_output)(graphs[0], graph)
        labels = overlay(labels, graphs[0], graph, partners)
    if runtime == TFLITE.runtime:
        from amc_mobile.kernels.tflite import TfliteTemplate

        return TfliteTemplate(model, groups, graph, labels, vocabulary)
    from amc_mobile.kernels.onnx import OnnxTemplate

    return OnnxTemplate(model, layout, groups, graph, labels, vocabulary)


def file_format(runtime: str) -> ModuleType:
    """The module that reads and writes the files of a runtime; imported late, for its package may be missing."""
    if runtime == TFLITE.runtime:
        from amc_mobile.kernels import tflite

        return tflite
    from amc_mobile.kernels import onnx

    return onnx


class _Files:
    """The exported original and its pruned traces, in a folder named by everything that decides them."""

    def __init__(self, model: nn.Module, groups: ChannelGroups, runtime: str, folder: Path, code: WidthCode) -> None:
        self.code = code
        self._model, self._groups, self._format = model, groups, BY_RUNTIME[runtime]
        self._folder = folder / f"{runtime}-{fingerprint(model, groups, runtime)}"
        self._forget_other_behaviour()

    def _forget_other_behaviour(self) -> None:
        """Deletes the files when equal weights in equal modules compute something else: `forward` was edited."""
        path = self._folder / "behaviour.json"
        outputs = _outputs(self._model, self._groups.input_shape)
        if path.exists():
            before = _numbers(path, store.read_json(path, format_version=FORMAT_VERSION)["outputs"])
            if before.shape == outputs.shape and np.allclose(
                before, outputs, rtol=1e-3, atol=1e-4 * abs(outputs).max()
            ):
                return
        for exported in self._folder.glob(f"*{self._format.suffix}"):
            exported.unlink()
        store.write_json(path, {"outputs": outputs.tolist()}, format_version=FORMAT_VERSION)

    def kept(self, trace: int) -> list[Ids]:
        """Random channels of each group, so that which of them stay can be recognised in the exported arrays."""
        rng = np.random.default_rng(trace)
        sizes, widths = self.code.widths[0], self.code.widths[trace]
        return [
            np.sort(rng.choice(int(size), int(width), replace=False)).astype(np.int64)
            for size, width in zip(sizes, widths, strict=True)
        ]

    def parsed(self, trace: int, form: ModuleType) -> tuple[object, Graph]:
        path = self._path(trace)
        if not path.exists():
            self._export(trace, path)
        return _parsed(path, form)

    def quantised(self, precision: str, form: ModuleType) -> tuple[object, Graph]:
        """The original in another precision."""
        path = self._folder / f"original_{precision}-{_version(self._format.quantizer_package)}{self._format.suffix}"
        if not path.exists():
            images = stand_in_images(self._groups.input_shape)
            quantised = QUANTIZERS[self._format.name](self._path(0).read_bytes(), precision, images)
            store.write_bytes(path, quantised)
        return _parsed(path, form)

    def _path(self, trace: int) -> Path:
        if trace == 0:
            return self._folder / f"original{self._format.suffix}"
        widths = hashlib.sha256(self.code.widths[trace].tobytes()).hexdigest()[:8]
        return self._folder / f"trace_{trace}_{widths}{self._format.suffix}"

    def _export(self, trace: int, path: Path) -> None:
        kept = dict(zip(self._groups.names, self.kept(trace), strict=True)) if trace else {}
        network = surgery.apply(self._model, self._groups, kept)
        EXPORTERS[self._format.name](network, (1, *self._groups.input_shape[1:]), path)


def _parsed(path: Path, form: ModuleType) -> tuple[object, Graph]:
    try:
        model = form.parse(path.read_bytes())
        return model, form.to_graph(model)
    except AmcMobileError:
        raise
    except Exception as error:  # the readers check nothing: struct.error, IndexError, KeyError, protobuf's own errors
        why = f"cannot be read ({str(error) or type(error).__name__})"
        raise CorruptFile(path, why, next_step="delete it and run the step again") from error


def _numbers(path: Path, values: object) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptFile(path, f"holds no numbers ({error})", next_step=f"delete {path.parent}") from error


def fingerprint(model: nn.Module, groups: ChannelGroups, runtime: str) -> str:
    """16 hex digits: the network's weights and structure, its groups, and the exporters' versions."""
    digest = hashlib.sha256()
    facts = {
        "format": FORMAT_VERSION,
        "input_shape": list(groups.input_shape),
        "groups": [[group.name, group.channels] for group in groups.groups],
        "versions": [_version(package) for package in BY_RUNTIME[runtime].exporter_packages],
        "structure": str(model),
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, dims in sorted(groups.parameters.items()):
        digest.update(name.encode())
        for ids in dims:
            digest.update(b"-" if ids is None else ids.group.tobytes() + ids.position.tobytes())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _outputs(model: nn.Module, input_shape: Sequence[int]) -> NDArray[np.float64]:
    """The first outputs for a fixed random image, shape (up to 64,)."""
    image = np.random.default_rng(0).standard_normal((1, *input_shape[1:])).astype(np.float32)
    clone = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        output = clone(torch.from_numpy(image))
    return output.flatten()[:64].double().numpy()  # type: ignore[no-any-return]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"  # the exporter will say what to install
