"""The export template: whole models and single kernels at any plan, from one true export.

The exported files are kept, since one conversion takes about 12 s, and decoded anew at each load.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_mobile import store
from amc_mobile.channels import surgery
from amc_mobile.channels.structure import ChannelGroups, Layer
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, InvalidInput, UnsupportedLayer
from amc_mobile.export.converters import EXPORTERS, QUANTIZERS, stand_in_images
from amc_mobile.formats import BY_RUNTIME, FLOAT32
from amc_mobile.kernels.kernel import Attribute, Expression, Graph, Kernel, Operator, Shape
from amc_mobile.kernels.labels import (
    MAX_TRACES,
    MIN_CHANNELS,
    AmbiguousError,
    Cut,
    Ids,
    Labels,
    UndecodableError,
    Vocabulary,
    WidthCode,
    choose_widths,
    decode,
    overlay,
)
from amc_mobile.kernels.onnx_layout import Border

Widths = NDArray[np.int64]
T = TypeVar("T")
FORMAT_VERSION = 2  # of the exported files. 1: exports and behaviour.json; 2: .onnx int8 has unsigned activations
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class KernelSite:
    """A place in the network where a kernel runs.

    `axes`: the sums of group widths that decide its shapes, usually the input and the output channels; every size in
    the kernel is a multiple of one of them, a sum of them or constant. `group_indices`: the groups it depends on.
    `other_code_from`: axis -> the value from which on the runtime is known to run other code.
    """

    index: int
    name: str  # module path of its layer, else the operator's name and number
    operator_type: str
    nodes: tuple[int, ...]
    axes: tuple[Expression, ...]
    group_indices: tuple[int, ...]
    other_code_from: Mapping[int, int] = field(default_factory=dict)


class Template(ABC):
    """What both file formats share. `kept`: group name -> original channels that stay; others keep everything.

    `source`: the parsed original; `layout`: what ONNX Runtime does with graphs on the device.
    """

    runtime: str

    def __init__(
        self, source: Any, layout: OnnxLayout, groups: ChannelGroups, graph: Graph, labels: Labels,
        vocabulary: Vocabulary,
    ) -> None:  # fmt: skip
        self._source, self._layout = source, layout
        self.group_names = groups.names
        self.sizes: Widths = groups.sizes
        self._graph, self._labels, self._vocabulary = graph, labels, vocabulary
        self._operators: dict[int, Callable[[Sequence[int]], Operator]] = {}
        self._kernels: dict[tuple[int, ...], Kernel] = {}
        self.sites = self._find_sites(groups)

    def node_keys(self, site: KernelSite) -> tuple[str, ...]:
        """What graph viewers know the site's nodes by: the name of an output, or the number where outputs have none."""
        outputs = {index: self._graph.nodes[index].outputs[0] for index in site.nodes}
        return tuple(output if isinstance(output, str) else str(index) for index, output in outputs.items())

    @abstractmethod
    def units(self) -> list[list[int]]:
        """Nodes that the runtime executes as one kernel, in order of execution."""

    @abstractmethod
    def build(self, cut: Cut, nodes: Sequence[int] | None) -> bytes:
        """The file at a plan: the whole model, or only `nodes`."""

    def other_code_from(self, nodes: Sequence[int], axes: Sequence[Expression]) -> dict[int, int]:
        """Axis of a kernel -> the value from which on the runtime runs other code."""
        return {}

    @property
    def converts_layouts(self) -> bool:
        """Whether kernels cut out may convert between layouts where the whole model does not."""
        return False

    @cached_property
    def borders(self) -> tuple[Border, ...]:
        """The values whose conversion between layouts the whole model may spare its kernels; empty: not known."""
        return ()

    def model_at(self, kept: Mapping[str, Ids]) -> bytes:
        """The whole model's file at a plan, weights cut to size. Raises InvalidInput for channels that do not exist."""
        return self.build(self._cut(kept), None)

    def cut(self, site_index: int, kept: Mapping[str, Ids]) -> bytes:
        """A file with one kernel only, as it is in the whole model at that plan."""
        return self.build(self._cut(kept), self.sites[site_index].nodes)

    def cut_at_widths(self, site_index: int, widths: Widths) -> bytes:
        """A kernel at `widths`, shape (groups,): which channels stay does not change its latency."""
        kept = [np.arange(int(width), dtype=np.int64) for width in widths]
        return self.build(self._cut_of(kept), self.sites[site_index].nodes)

    def kernel_at(self, site_index: int, widths: Sequence[int] | Widths) -> Kernel:
        """The kernel of a site at `widths`, one per group."""
        site = self.sites[site_index]
        at = [int(width) for width in widths] if not isinstance(widths, np.ndarray) else widths.tolist()
        key = (site_index, *(axis.at(at) for axis in site.axes))
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = Kernel(self.runtime, tuple(self._operators[n](at) for n in site.nodes))
        return kernel

    def kernels(self, widths: Sequence[int] | Widths) -> list[Kernel]:
        return [self.kernel_at(site.index, widths) for site in self.sites]

    def _cut(self, kept: Mapping[str, Ids]) -> Cut:
        unknown = sorted(set(kept) - set(self.group_names))
        if unknown:
            raise InvalidInput(f"no channel groups {unknown[:3]}", next_step=f"the groups are {list(self.group_names)}")
        lists = []
        for name, size in zip(self.group_names, self.sizes, strict=True):
            indices = np.asarray(kept[name] if name in kept else np.arange(size), dtype=np.int64)
            if (indices[1:] <= indices[:-1]).any():
                indices = np.unique(indices)
            if len(indices) < MIN_CHANNELS or indices[0] < 0 or indices[-1] >= size:
                raise InvalidInput(
                    f"{name}: cannot keep {len(indices)} channels, up to {indices[-1:].tolist()}, of {size}",
                    next_step=f"keep at least {MIN_CHANNELS} of the channels 0 to {size - 1}",
                )
            lists.append(indices)
        return self._cut_of(lists)

    def _cut_of(self, lists: Sequence[Ids]) -> Cut:
        return Cut(self._graph, self._labels, self._vocabulary, lists)

    # Kernels ---------------------------------------------------------------------------------------------------

    def _find_sites(self, groups: ChannelGroups) -> tuple[KernelSite, ...]:
        units = self.units()
        self._operators = {node: self._operator(node) for unit in units for node in unit}
        at = self.sizes.tolist()
        kernels = [Kernel(self.runtime, tuple(self._operators[n](at) for n in nodes)) for nodes in units]
        names = _layer_names(kernels, groups.layers)
        sites = []
        for index, nodes in enumerate(units):
            axes = independent((e for node in nodes for e in self._expressions(node)), len(at))
            depends = tuple(sorted({group for axis in axes for group, _ in axis.terms}))
            kind = kernels[index].operator_type
            changes = self.other_code_from(nodes, axes)
            sites.append(KernelSite(index, names[index], kind, tuple(nodes), axes, depends, changes))
        return tuple(sites)

    def _expressions(self, index: int) -> list[Expression]:
        """Every size of a node: inputs, weights, outputs, then computed constants and attributes."""
        node, labels = self._graph.nodes[index], self._labels
        shapes = [labels.of_input(self._graph, index, slot) for slot in range(len(node.inputs))]
        shapes += [labels.shapes[value] for value in node.outputs]
        sizes = [e for shape in shapes if shape is not None for e in shape]
        for slot in node.constants:
            sizes += labels.constants[index, slot].values or ()
        for label in labels.attributes.get(index, {}).values():
            sizes += [label] if isinstance(label, Expression) else label
        return sizes

    def _operator(self, index: int) -> Callable[[Sequence[int]], Operator]:
        """The operator of a node as a function of the widths; what does not change is worked out once."""
        graph, labels = self._graph, self._labels
        node = graph.nodes[index]
        inputs = [_shape_of(labels.of_input(graph, index, slot)) for slot in range(len(node.inputs))]
        outputs = [_shape_of(labels.shapes[value]) for value in node.outputs]
        attributes: dict[str, Callable[[Sequence[int]], Attribute]] = {
            name: _always(value) for name, value in node.attributes.items()
        }
        for slot in node.constants:
            values = labels.constants[index, slot].values
            if values is not None:
                attributes[f"constant{slot}"] = _shape_of(values)
            elif graph.is_small_integer(index, slot):
                integers = tuple(int(v) for v in node.constants[slot].ravel())
                attributes[f"constant{slot}"] = _always(integers)
        for name, label in labels.attributes.get(index, {}).items():
            attributes[name] = label.at if isinstance(label, Expression) else _shape_of(label)
        constants = tuple(slot in node.constants for slot in range(len(node.inputs)))
        dtype = _type_name(graph, index)
        ordered = sorted(attributes.items())

        def at(widths: Sequence[int]) -> Operator:
            return Operator(
                name=node.operator,
                inputs=tuple(shape(widths) for shape in inputs),
                constants=constants,
                outputs=tuple(_present(shape(widths)) for shape in outputs),
                attributes=tuple((name, value(widths)) for name, value in ordered),
                dtype=dtype,
            )

        return at


def _always(value: T) -> Callable[[Sequence[int]], T]:
    return lambda widths: value


def _shape_of(label: tuple[Expression, ...] | None) -> Callable[[Sequence[int]], Shape | None]:
    if label is None:
        return _always(None)
    if all(e.is_constant for e in label):
        return _always(tuple(e.constant for e in label))
    return lambda widths: tuple(e.at(widths) if e.terms else e.constant for e in label)


def _present(shape: Shape | None) -> Shape:
    assert shape is not None  # outputs always have a shape
    return shape


def _type_name(graph: Graph, index: int) -> str:
    """The activations' type, and the weights' where it is another: "float32", "float32/int8"."""
    node = graph.nodes[index]
    data = [graph.types[v] for s, v in enumerate(node.inputs) if v is not None and s not in node.constants]
    activation = data[0] if data else graph.types[node.outputs[0]]
    weights = [str(c.dtype) for s, c in node.constants.items() if not graph.is_small_integer(index, s)]
    return activation if not weights or weights[0] == activation else f"{activation}/{weights[0]}"


def independent(expressions: Iterable[Expression], groups: int) -> tuple[Expression, ...]:
    """The first expressions that are no sums of multiples of those before them, constants aside."""
    chosen: list[Expression] = []
    rows: list[NDArray[np.int64]] = []
    for expression in dict.fromkeys(expressions):
        if expression.is_constant:
            continue
        row = expression.linear(groups)
        if np.linalg.matrix_rank(np.array([*rows, row], dtype=np.float64)) > len(rows):
            chosen.append(expression)
            rows.append(row)
    return tuple(chosen)


def _layer_names(kernels: Sequence[Kernel], layers: Sequence[Layer]) -> list[str]:
    """The module path of the first layer of equal work that no kernel before it took; else operator and number."""
    left = list(layers)
    names = []
    for index, kernel in enumerate(kernels):
        match = next((layer for layer in left if kernel.macs and _is_of(kernel, layer)), None)
        if match is not None:
            left.remove(match)
        names.append(f"{kernel.main.name.lower()}_{index}" if match is None else match.name)
    return names


def _is_of(kernel: Kernel, layer: Layer) -> bool:
    return kernel.macs == layer.macs and kernel.main.out_channels == len(layer.out_ids)


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
        labels = overlay(labels, graphs[0], graph, form.partners(graphs[0], graph))
    template: Template = form.TEMPLATE(model, layout, groups, graph, labels, vocabulary)
    return template


def file_format(runtime: str) -> ModuleType:
    """The module that reads and writes the files of a runtime; imported late, for its package may be missing."""
    return importlib.import_module(f"amc_mobile.kernels.{BY_RUNTIME[runtime].name}")


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
