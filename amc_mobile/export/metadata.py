"""What an exported file says about itself: names and shapes of its ends, and how an app feeds it.

A shipped file carries a JSON text called METADATA_KEY: an .onnx file in `metadata_props`, a .tflite file in a buffer
that the schema's `metadata` table names. The text is padded with spaces, so that what is measured can be filled in
later without moving a byte: the file that was measured and the file that ships differ within this text alone, and
`graph_sha256`, over everything outside of it, is the same for both.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidInput
from amc_mobile.formats import BY_SUFFIX, FORMATS, ONNX, TFLITE, TFLITE_IDENTIFIER
from amc_mobile.store import from_document, is_file, parse_object, to_document, write_json, write_text

METADATA_KEY = "amc_mobile"
FORMAT_VERSION = 1  # of the JSON text and of model.json. 1: first
MEASUREMENT_BYTES = 4096  # left free in the text for what is known after measuring; LatencyInfo cuts long texts
ALIGNMENT = 16  # bytes; the schema asks for it, and interpreters map weights from the file as they lie
MOST_LABELS = 12  # that are printed
MOST_SIGNS = 90  # of each text about the device; JSON may take six bytes for one


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a file.

    `shape`: -1 where a size is not fixed. `layout`: "NHWC" or "NCHW" of images and maps. Where `scale` is set, a real
    value is (stored - zero_point) * scale. `content`: "image", "logits", "probabilities", "detections" or "values"; ""
    where the file does not say.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None
    layout: str = ""
    content: str = ""


@dataclass(frozen=True)
class ImageInput:
    """How pixels become the input: input = (pixel / divisor - mean) / std, per channel.

    `pixel_range`: lowest and highest pixel value; None where the data source gives its own floating-point values.
    `resize`: "stretch" to the input's size, or "crop": the shorter side to `resize_to` pixels, then the middle.
    """

    colours: str  # "RGB", "grey", "" for others
    pixel_range: tuple[float, ...] | None
    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    resize_to: int | None = None


@dataclass(frozen=True)
class BudgetInfo:
    """A budget of the search. `met`: decided by measuring this file; None where it was not."""

    asked: str
    unit: str
    limit: float
    device: str
    met: bool | None = None


@dataclass(frozen=True)
class LatencyInfo:
    """The file measured on a device, next to the original network's file in the same format and precision."""

    p50_ms: float
    ci_low_ms: float  # 95 % interval of the p50
    ci_high_ms: float
    p90_ms: float
    original_p50_ms: float
    device: str
    soc: str
    os: str
    runtime: str
    runtime_version: str
    delegate: str
    threads: int

    def __post_init__(self) -> None:
        """Texts come from phones: what is longer than MOST_SIGNS is cut."""
        for name, value in vars(self).items():
            if isinstance(value, str):
                object.__setattr__(self, name, value[:MOST_SIGNS])


@dataclass(frozen=True)
class NetworkInfo:
    """What all files of an export share. `plan`: original and kept channels of each group; of weights likewise.

    `image`: None for networks that take something else than one image. `metric`: what accuracies are. Paths of the
    user's computer are left out.
    """

    amc_mobile: str  # version
    network: str
    data: str
    task: str
    image: ImageInput | None
    labels: tuple[str, ...]
    metric: str
    accuracy_on: str
    plan: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FileInfo:
    """One file of an export. `accuracy`: of the file itself, in [0, 1]."""

    format: str
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    budgets: tuple[BudgetInfo, ...]
    accuracy: float | None = None
    latency: LatencyInfo | None = None


def parse_tflite(content: bytes) -> Any:
    """A .tflite file as a schema object. Raises ValueError for other files; a broken one raises nearly anything."""
    if content[4:8] != TFLITE_IDENTIFIER:
        raise ValueError("not a .tflite file")
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise TFLITE.missing() from error
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # large buffers may lie behind the FlatBuffer
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack_tflite(model: Any) -> bytes:
    """The file of a schema object whose large buffers are AlignedBuffers."""
    import flatbuffers

    size = sum(len(buffer.data) + ALIGNMENT for buffer in model.buffers if buffer.data is not None)
    builder = flatbuffers.Builder(size + 1024 * (sum(len(graph.tensors) for graph in model.subgraphs) + 4))
    builder.Finish(model.Pack(builder), TFLITE_IDENTIFIER)
    return bytes(builder.Output())


class AlignedBuffer:
    """In place of the schema's BufferT: packs its bytes at ALIGNMENT, which the generated code does not."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def Pack(self, builder: Any) -> Any:  # noqa: N802
        from ai_edge_litert import schema_py_generated as schema

        builder.StartVector(1, self.data.size, ALIGNMENT)
        builder.head -= self.data.size
        builder.Bytes[builder.head : builder.head + self.data.size] = self.data.tobytes()
        offset = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, offset)
        return schema.BufferEnd(builder)


def named(content: bytes, form: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The file with its inputs and outputs renamed, in their order. Values inside with such a name get another."""
    return (_named_tflite if form == TFLITE.name else _named_onnx)(content, inputs, outputs)


def _named_tflite(content: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    model = parse_tflite(content)
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    for tensor in graph.tensors:
        if _text(tensor.name) in (*inputs, *outputs):
            tensor.name = f"{_text(tensor.name)}.inner"
    # The converter numbers what it makes: args_0, output_1.
    for side, entries, names in (("inputs", signature.inputs, inputs), ("outputs", signature.outputs, outputs)):
        entries.sort(key=lambda entry: int(re.sub("[^0-9]", "", _text(entry.name)) or 0))
        setattr(graph, side, np.array([entry.tensorIndex for entry in entries], np.int32))
        for entry, name in zip(entries, names, strict=True):
            entry.name = graph.tensors[entry.tensorIndex].name = name
    model.buffers = [buffer if buffer.data is None else AlignedBuffer(buffer.data) for buffer in model.buffers]
    return pack_tflite(model)


def _named_onnx(content: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    ends = [value.name for value in (*graph.input, *graph.output) if value.name not in weights]
    new = {name: f"{name}.inner" for name in (*inputs, *outputs)} | dict(zip(ends, (*inputs, *outputs), strict=True))
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    return bytes(model.SerializeToString())


def with_metadata(content: bytes, form: str, text: str) -> bytes:
    """The file with `text` under METADATA_KEY."""
    if form != TFLITE.name:
        import onnx

        model = onnx.load_from_string(content)
        model.metadata_props.add(key=METADATA_KEY, value=text)
        return bytes(model.SerializeToString())
    from ai_edge_litert import schema_py_generated as schema

    model = parse_tflite(content)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA_KEY, len(model.buffers)
    model.metadata = [*(model.metadata or ()), entry]
    model.buffers = [buffer if buffer.data is None else AlignedBuffer(buffer.data) for buffer in model.buffers]
    model.buffers.append(AlignedBuffer(np.frombuffer(text.encode(), np.uint8)))
    return pack_tflite(model)


@dataclass(frozen=True)
class ShippedFile:
    """An exported file with names and metadata. `text`: the metadata as they are in `content`."""

    content: bytes
    network: NetworkInfo
    info: FileInfo
    text: str

    @classmethod
    def of(
        cls, exported: bytes, form: str, precision: str, network: NetworkInfo,
        *, names: tuple[Sequence[str], Sequence[str]], output_content: str, budgets: tuple[BudgetInfo, ...],
    ) -> ShippedFile:  # fmt: skip
        """Of what the exporter or the quantiser gave. `names`: of inputs and outputs."""
        content = named(exported, form, *names)
        ends = read_ends(content, form)
        layout = "NHWC" if FORMATS[form].channel_axis == -1 else "NCHW"
        inputs, outputs = (
            tuple(replace(end, layout=layout if len(end.shape) == 4 else "", content=kind) for end in side)
            for side, kind in ((ends.inputs, "image" if network.image else "values"), (ends.outputs, output_content))
        )
        info = FileInfo(form, precision, inputs, outputs, budgets)
        text = _text_of(network, info)
        text = text.ljust(len(text) + MEASUREMENT_BYTES)
        return cls(with_metadata(content, form, text), network, info, text)

    def filled(self, **facts: Any) -> ShippedFile:
        """With fields of FileInfo that are known after running it; no byte outside of the metadata text changes."""
        info = replace(self.info, **facts)
        text = _text_of(self.network, info).ljust(len(self.text))
        assert len(text) == len(self.text)
        return replace(self, content=self.content.replace(self.text.encode(), text.encode(), 1), info=info, text=text)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def graph_sha256(self) -> str:
        return graph_sha256(self.content, self.text)


def _text_of(network: NetworkInfo, file: FileInfo) -> str:
    """JSON in ASCII."""
    document = {"format_version": FORMAT_VERSION, **to_document(network), **to_document(file)}
    return json.dumps(document, allow_nan=False)


def graph_sha256(content: bytes, text: str) -> str:
    """Of everything in a file but its metadata text: equal for the measured and the shipped file."""
    head, _, tail = content.partition(text.encode()) if text else (content, b"", b"")
    return hashlib.sha256(head + tail).hexdigest()


MODEL_JSON, LABELS_TXT, CLASSIFY_KT = "model.json", "labels.txt", "Classify.kt"
DESCRIPTIONS = (MODEL_JSON, LABELS_TXT, CLASSIFY_KT)


def describe_files(folder: Path, files: Mapping[str, ShippedFile], *, kotlin: bool) -> None:
    """Writes what is in the metadata of `files`, by name, into `folder`: model.json, labels.txt and Classify.kt."""
    network = next(iter(files.values())).network
    documents = {
        name: {
            **to_document(file.info), "bytes": len(file.content), "graph_sha256": file.graph_sha256,
            "sha256": file.sha256,
        }
        for name, file in files.items()
    }  # fmt: skip
    for name in DESCRIPTIONS:
        (folder / name).unlink(missing_ok=True)
    write_json(folder / MODEL_JSON, {**to_document(network), "files": documents}, format_version=FORMAT_VERSION)
    if network.labels:
        write_text(folder / LABELS_TXT, "".join(f"{' '.join(label.split())}\n" for label in network.labels))
    if kotlin:
        # Of each format the last file: a quantised one comes after the float32 file that it was made from.
        names = {file.info.format: name for name, file in files.items()}.values()
        write_text(folder / CLASSIFY_KT, kotlin_source(network, {name: files[name].info for name in names}))


def kotlin_source(network: NetworkInfo, files: Mapping[str, FileInfo]) -> str:
    """A Kotlin file that feeds `files`, one of each format, by name. The network takes one grey or RGB image."""
    import jinja2

    assert network.image is not None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("amc_mobile.export"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    end, output = next((file.inputs[0], file.outputs[0]) for file in files.values())
    sides = end.shape[1:3] if end.layout == "NHWC" else end.shape[2:]
    return environment.get_template(f"{CLASSIFY_KT}.j2").render(
        network=network, files=files, channels=len(network.image.mean), height=sides[0], width=sides[1],
        content=output.content, formats={file.format for file in files.values()},
    )  # fmt: skip


@dataclass(frozen=True)
class Ends:
    """What a file says by itself. `properties`: its metadata by key; of what is no text, how many bytes it has."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: int
    properties: Mapping[str, str]


def read_ends(content: bytes, form: str) -> Ends:
    """A broken file raises nearly anything."""
    return _tflite_ends(content) if form == TFLITE.name else _onnx_ends(content)


def _tflite_ends(content: bytes) -> Ends:
    model = parse_tflite(content)
    graph = model.subgraphs[0]
    signatures = [s for s in model.signatureDefs or () if s.subgraphIndex == 0]
    entries = [e for s in signatures[:1] for e in (*(s.inputs or ()), *(s.outputs or ()))]
    names = {entry.tensorIndex: _text(entry.name) for entry in entries}

    def info(index: int) -> TensorInfo:
        tensor = graph.tensors[index]
        steps = tensor.quantization
        scaled = steps is not None and steps.scale is not None and len(steps.scale) == 1
        sizes = next((s for s in (tensor.shapeSignature, tensor.shape) if s is not None and len(s)), ())
        return TensorInfo(
            names.get(index, _text(tensor.name)), tuple(int(n) for n in sizes),
            _tflite_type(tensor.type), float(steps.scale[0]) if scaled else None,
            (int(steps.zeroPoint[0]) if steps.zeroPoint is not None else 0) if scaled else None,
        )  # fmt: skip

    properties = {_text(entry.name): _printable(model.buffers[entry.buffer].data) for entry in model.metadata or ()}
    if model.description:
        properties["description"] = _printable(model.description)
    inputs, outputs = (tuple(info(int(index)) for index in side) for side in (graph.inputs, graph.outputs))
    return Ends(inputs, outputs, len(graph.operators), properties)


def _tflite_type(number: int) -> str:
    from ai_edge_litert import schema_py_generated as schema

    names: dict[int, str] = {value: name for name, value in vars(schema.TensorType).items()}
    return names[number].lower()


def _onnx_ends(content: bytes) -> Ends:
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}

    def info(value: Any) -> TensorInfo:
        of = value.type.tensor_type
        shape = tuple(int(dim.dim_value) if dim.HasField("dim_value") else -1 for dim in of.shape.dim)
        return TensorInfo(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(of.elem_type).name)

    inputs = tuple(info(value) for value in graph.input if value.name not in weights)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    properties |= {key: value for key, value in (("producer", producer), ("opset", opsets)) if value}
    return Ends(inputs, tuple(info(value) for value in graph.output), len(graph.node), properties)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")


def _printable(data: Any) -> str:
    content = bytes(np.asarray(data, np.uint8)) if isinstance(data, np.ndarray) else bytes(data or b"")
    try:
        return content.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return f"{len(content)} bytes"


@dataclass(frozen=True)
class FileDescription:
    """What a .tflite or .onnx file says about itself.

    `network`, `info`: of a file that `amc-mobile export` wrote, None for others. `graph_sha256`: of everything outside
    of these. `properties`: what other tools left in the file.
    """

    path: str
    format: str
    bytes: int
    sha256: str
    graph_sha256: str
    operators: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    network: NetworkInfo | None
    info: FileInfo | None
    properties: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        return dict(to_document(self))

    def text(self) -> str:
        lines = [f"{self.path}: {self.bytes / 1e6:.3f} MB, {self.operators} operators"]
        for side, ends in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"{side:<7} {_end_text(end)}" for end in ends]
        if self.network and self.info:
            lines += _feeding_lines(self.network) + _result_lines(self.network, self.info)
        lines.append(f"SHA-256 of everything but the metadata: {self.graph_sha256}")
        lines += [f"{key}: {value[:MOST_SIGNS]}" for key, value in self.properties.items()]
        plain = ("".join(sign if sign.isprintable() else "?" for sign in line) for line in lines)
        return "\n  ".join(plain)


def _end_text(end: TensorInfo) -> str:
    parts = [end.name, " x ".join(str(n) if n >= 0 else "?" for n in end.shape), end.layout, end.dtype]
    text = " ".join(filter(None, parts))
    if end.scale is not None:
        text += f", real = (stored - {end.zero_point}) * {end.scale:g}"
    return text + (f": {end.content}" if end.content else "")


def _feeding_lines(network: NetworkInfo) -> list[str]:
    lines = []
    if image := network.image:
        pixels = "values as the data source gives them"
        if image.pixel_range:
            pixels = "pixels {:g} to {:g}".format(*image.pixel_range)
        numbers = [", ".join(f"{value:g}" for value in values) for values in (image.mean, image.std)]
        lines.append(
            f"image: {image.colours} {pixels}, input = (pixel / {image.divisor:g} - mean) / std".replace("  ", " ")
        )
        lines.append(f"mean {numbers[0]}; std {numbers[1]}")
        if image.resize == "crop":
            lines.append(f"size: the shorter side to {image.resize_to} pixels, then the middle is cut out")
        elif image.resize:
            lines.append("size: stretched to the input's, bilinear")
    if network.labels:
        more = f" and {len(network.labels) - MOST_LABELS} more" if len(network.labels) > MOST_LABELS else ""
        lines.append(f"labels: {', '.join(network.labels[:MOST_LABELS])}{more}")
    return lines


def _result_lines(network: NetworkInfo, info: FileInfo) -> list[str]:
    kept, whole = (sum(counts[i] for counts in network.plan.values()) for i in (1, 0))
    lines = [
        f"network: {network.network} on {network.data}, {kept} of {whole} kept in {len(network.plan)} groups, "
        f"{info.precision}, by amc-mobile {network.amc_mobile}"
    ]
    if info.accuracy is not None:
        lines.append(f"accuracy: {network.metric} {info.accuracy:.1%} on {network.accuracy_on}")
    for budget in info.budgets:
        verdict = {True: "met", False: "not met", None: "not measured"}[budget.met]
        lines.append(f"budget: {budget.asked} ({budget.limit:g} {budget.unit}): {verdict}")
    if latency := info.latency:
        threads = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
        lines.append(
            f"latency: p50 {latency.p50_ms:.3f} ms (95 % CI {latency.ci_low_ms:.3f}-{latency.ci_high_ms:.3f}), "
            f"original {latency.original_p50_ms:.3f} ms; on {latency.device} ({latency.soc}), {latency.runtime} "
            f"{latency.runtime_version} {latency.delegate}, {threads}"
        )
    return lines


def inspect(path: Path | str) -> FileDescription:
    """What a .tflite or .onnx file says about itself, of this tool or of another. Nothing in the file is run.

    Raises InvalidInput for other files, CorruptFile for broken ones.

        amc.inspect("model.tflite").inputs[0].layout
    """
    path = Path(path)
    if not is_file(path):
        raise InvalidInput(f"no file {path}", next_step="check the path")
    content = path.read_bytes()
    is_tflite = content[4:8] == TFLITE_IDENTIFIER
    if not is_tflite and path.suffix != ONNX.suffix:
        raise InvalidInput(f"{path}: not a {' or '.join(BY_SUFFIX)} file", next_step="give a file of these formats")
    form = TFLITE.name if is_tflite else ONNX.name
    try:
        ends = read_ends(content, form)
    except AmcMobileError:
        raise
    except Exception as error:  # the readers check nothing: struct.error, IndexError, protobuf's own errors
        why = f"cannot be read as .{form} ({str(error) or type(error).__name__})"
        raise CorruptFile(path, why, next_step="export it again") from error
    properties = dict(ends.properties)
    text = properties.pop(METADATA_KEY, "")
    network, info = _parsed(text)
    return FileDescription(
        str(path), form, len(content), hashlib.sha256(content).hexdigest(), graph_sha256(content, text),
        ends.operators, info.inputs if info else ends.inputs, info.outputs if info else ends.outputs, network, info,
        properties,
    )  # fmt: skip


def _parsed(text: str) -> tuple[NetworkInfo | None, FileInfo | None]:
    """None where the text is not one of ours, or of a later version."""
    try:
        document = parse_object(text)
        if document.pop("format_version", None) != FORMAT_VERSION:
            return None, None
        own = {field.name for field in fields(NetworkInfo)}
        parts = [{k: v for k, v in document.items() if (k in own) is of_network} for of_network in (True, False)]
        return from_document(NetworkInfo, parts[0], "metadata"), from_document(FileInfo, parts[1], "metadata")
    except (ValueError, InvalidInput):
        return None, None
