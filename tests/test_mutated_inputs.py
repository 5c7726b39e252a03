"""Everything that enters, damaged in 2,000 ways per parser, gives a value or an error of ours with its next step."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import typer
from device.benchmark_model_texts import CLASSIC, LITERT
from device.elf_files import ARM64, shared_library

from amc_mobile.channels.plan import PruningPlan
from amc_mobile.cli import app
from amc_mobile.cli_options import flags_from
from amc_mobile.device import phone_output as out
from amc_mobile.device import phone_state
from amc_mobile.device.adb import parse_devices
from amc_mobile.device.benchmark_model import parse_benchmark_model
from amc_mobile.device.conditions import Conditions
from amc_mobile.device.device import Pass, parse_neighbours
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.device.libraries import add_library, list_libraries, read_elf
from amc_mobile.device.phone_runner import saved_plan
from amc_mobile.device.profiles import read_profile
from amc_mobile.device.runner import parse_line
from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, PhoneOutputInvalid, UnsupportedLayer
from amc_mobile.latency import table_files
from amc_mobile.latency.measurement import ModelRequest
from amc_mobile.latency.protocol import StretchPlan
from amc_mobile.latency.table import LatencyTable, open_storage, read_pass, read_widths
from amc_mobile.latency.table_files import foreign_conditions, from_csv
from amc_mobile.search.episode_log import EpisodeLog, EpisodeRow, Pending
from amc_mobile.store import from_document, parse_json, read_json, read_lines, to_document, write_json
from amc_mobile.workflows.workspace import Settings, Workspace

MUTATIONS = 2000
STATE = Path(__file__).parent / "phone_fake" / "state" / "pixel_8"
RECORDED = Path(__file__).parent / "data" / "bench_output_v1.jsonl"
HOSTILE = (
    b"9" * 5000, b"-" + b"9" * 60, b"1e999", b"1e-999", b"-1", b"0", b"2147483648", b"NaN", b"Infinity", b"-Infinity",
    b"null", b"true", b"{}", b"[]", b'""', b"[" * 3000, b'{"a":' * 3000, b"[[]]", b"\0", b"\xff\xfe", b"\n", b"\r",
    b",", b'"', b"\\", b'"\\ud800"', b'"\\u0000"', b"x" * 5000, b"../../../etc", b"\xc2\xb2", b"\x1b[2J",
    b" ", b"=", b"}", b"]",
)  # fmt: skip
_VALUE = re.compile(rb'(?<=[:=\[,])\s*("(?:[^"\\]|\\.)*"|[^\s,:\[\]{}"]+|\[[^\[\]]*\]|\{[^{}]*\})')


def mutated(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to three changes: bytes, lines or values cut, doubled, swapped or replaced by hostile ones."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(8)
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice((1, 2, 8, 60)))
        if kind == 0:
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at] + content[end:]
        elif kind == 2:
            content = content[:at] + content[at:end] * rng.choice((2, 300)) + content[end:]
        elif kind == 3:
            content = content[:at] + rng.choice(HOSTILE) + content[end if rng.randrange(2) else at :]
        elif kind == 4:
            content = content[:at]
        elif kind == 5:
            lines = content.splitlines(keepends=True)
            if lines:
                one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
                lines[one], lines[other] = rng.choice(
                    ((lines[other], lines[one]), (b"", lines[one]), (lines[one],) * 2)
                )
            content = b"".join(lines)
        else:
            values = list(_VALUE.finditer(content))
            if values:
                value = rng.choice(values)
                new = rng.choice(HOSTILE) if rng.randrange(2) else rng.choice(values)[1]
                content = content[: value.start(1)] + new + content[value.end(1) :]
    return content


@dataclass(frozen=True)
class Input:
    """A form that enters. `content`: a sound one; `parse`: reads it; `kinds`: what it may raise."""

    content: bytes
    parse: Callable[[bytes], object]
    kinds: tuple[type[AmcMobileError], ...] = (AmcMobileError,)


INPUTS: dict[str, Callable[[Path], Input]] = {}


def enters(make: Callable[[Path], Input]) -> Callable[[Path], Input]:
    INPUTS[make.__name__] = make
    return make


def of_text(parse: Callable[[str], object], content: str, *kinds: type[AmcMobileError]) -> Input:
    return Input(content.encode(), lambda b: parse(b.decode(errors="replace")), kinds or (AmcMobileError,))


def of_file(path: Path, parse: Callable[[], object], *kinds: type[AmcMobileError], content: bytes = b"") -> Input:
    def write_and_parse(mutation: bytes) -> object:
        path.write_bytes(mutation)
        return parse()

    return Input(content or path.read_bytes(), write_and_parse, kinds or (AmcMobileError,))


# Saved by amc-mobile, on this computer or a phone


@enters
def saved_document(folder: Path) -> Input:
    path = folder / "plans.json"
    write_json(path, {"plans": {"8 16": 1.25}, "points": [[1, 2.5], [3, 4.5]]}, format_version=2)
    return of_file(path, partial(read_json, path, format_version=2), CorruptFile)


@enters
def workspace(folder: Path) -> Input:
    space = Workspace(folder)
    space.remember(Settings(model="resnet20", data="digits", width_multiplier=0.5, seed=3), run="resnet20-macs-0.5")

    def parse() -> None:
        space.settings()
        space.table_location()
        with pytest.raises(AmcMobileError):  # there is no such run
            space.run_folder(None)

    return of_file(folder / "workspace.json", parse)


@enters
def run_records(folder: Path) -> Input:
    from amc_mobile.workflows.runs import Run

    run = Run(folder)
    for name in ("settings.json", "search.json"):
        shutil.copy(Path(__file__).parent / "golden" / "guards" / "run" / name, folder)
    both = (folder / "settings.json").read_bytes() + b"\0\0" + (folder / "search.json").read_bytes()

    def parse(content: bytes) -> None:
        settings, _, search = content.partition(b"\0\0")
        (folder / "settings.json").write_bytes(settings)
        (folder / "search.json").write_bytes(search)
        run.settings()
        run.search()

    return Input(both, parse, (CorruptFile,))


@enters
def plan_of_a_user(folder: Path) -> Input:
    plan = to_document(PruningPlan({"conv1": 16, "conv2": 32}, {"conv1": 8, "conv2": 24}, None))
    path = folder / "search.json"
    write_json(path, {"plan": plan}, format_version=1)
    return of_file(path, lambda: from_document(PruningPlan, read_json(path, format_version=1)["plan"], "plan"))


@enters
def episode_log(folder: Path) -> Input:
    row = EpisodeRow(0, "uniform", 0.3, None, 1 / 3, 6.9, 7.0, None, None, 1e6, None, 0.1, 0.2, 0.3, 0.0, (8, 16))
    log = EpisodeLog(folder / "episodes.csv", identity={"model": "resnet20"})
    log.start({"name": "random", "seed": 0}, {"limit": 7.0})
    log.append(row)
    log.append(row)
    return of_file(log.path, lambda: EpisodeLog(log.path).seconds(), CorruptFile)


@enters
def episode_log_header(folder: Path) -> Input:
    log = EpisodeLog(folder / "episodes.csv", identity={"model": "resnet20"})
    log.start({"name": "random", "seed": 0}, {"limit": 7.0})
    log.begin(Pending("random", (8, 16), 6.9, 7.0))

    def parse() -> None:
        again = EpisodeLog(log.path)
        assert again.pending is None or all(width > 0 for width in again.pending.widths)
        assert isinstance(again.policy_document, dict)

    return of_file(log.header_path, parse, CorruptFile)


@enters
def held_phone_settings(folder: Path) -> Input:
    phone_state.note(phone_state.HeldSettings("2A061JEGR0", "0", True))
    (path,) = phone_state.held_settings_folder().iterdir()
    return of_file(path, partial(phone_state.noted, "2A061JEGR0"), CorruptFile)


@enters
def library_record(folder: Path) -> Input:
    source = folder / "libonnxruntime-1.29.0.so"
    source.write_bytes(shared_library(ARM64, ("libc.so",), ("OrtGetApiBase",)))
    (library,) = add_library(source, folder / "runtimes")
    return of_file(library.path.parent / "library.json", partial(list_libraries, folder / "runtimes"), CorruptFile)


@enters
def plan_of_passes(folder: Path) -> Input:
    plan = StretchPlan((("a", "b"), ("a", "c")), {"a": 2, "b": 0, "c": 1}, "a", 1.25, 2, 3)
    return of_text(StretchPlan.from_text, plan.to_text())


@enters
def batch_left_on_a_phone(folder: Path) -> Input:
    state = {
        "thermal": (STATE / "dumpsys_thermalservice.txt").read_text(),
        "battery": (STATE / "dumpsys_battery.txt").read_text(),
        "clocks": (STATE / "cpufreq.txt").read_text(),
        "low_power": "0\n",
    }
    return of_text(saved_plan, json.dumps({"plan": "{}", "state": state}))


@enters
def layout_of_onnx_runtime(folder: Path) -> Input:
    layout = OnnxLayout(
        block=8, dense_from=4, pool_multiples={"MaxPool": 8}, on_blocks=frozenset({"Relu"}),
        fused_after={"Conv": frozenset({"Relu", "Clip"})},
    )  # fmt: skip
    return of_text(OnnxLayout.parse, layout.text())


# Tables


CONDITIONS = Conditions(
    "Pixel 8", "zuma", "Android 14", "tflite", "2.17.0", "ab" * 32, "xnnpack", 1, "4-7", "sched_pixel"
)


def signed(lines: list[str]) -> list[str]:
    """The lines of a bundle whose last one fits those before, whoever changed them."""
    body = lines[1:-1]
    head = json.dumps({"format": table_files.FORMAT, "format_version": table_files.FORMAT_VERSION, "lines": len(body)})
    return [head, *body, json.dumps({"kind": "end", "sha256": table_files._digest(body)})]


def bundle_lines(folder: Path) -> list[str]:
    with LatencyTable(folder / "made.sqlite") as table:
        table.add_passes(CONDITIONS, [("model", Pass((1.5, 1.25)))], warmup_runs=4)
        whole = ModelRequest("net", (8, 24), bytes)
        table.add_models([whole])
        table.add_passes(CONDITIONS, [(whole.key, Pass((2.0, 2.25)))], warmup_runs=5)
        contents = table.contents()
    lines = table_files.to_lines(contents)
    kernel = json.dumps({"kind": "kernel", "key": "model", "label": "conv 8->16", "document": {"op": "CONV_2D"}})
    adoption = json.dumps(
        {"kind": "adoption", "conditions": CONDITIONS.key, "source": "ab", "ratio": 1.1, "created": "x"}
    )
    return [lines[0], kernel, *lines[1:-1], adoption, lines[-1]]


@enters
def table_bundle(folder: Path) -> Input:
    path = folder / "table.jsonl"
    path.write_text("\n".join(signed(bundle_lines(folder))))
    return of_file(path, lambda: table_files.from_lines(path, read_lines(path, next_step="export again")), CorruptFile)


@enters
def signed_table_bundle(folder: Path) -> Input:
    """Changed and signed anew, so that every line is read and stored."""
    path = folder / "table.jsonl"
    path.write_text("\n".join(bundle_lines(folder)))
    tables = iter(range(MUTATIONS + 1))

    def parse() -> None:
        lines = read_lines(path, next_step="export again")
        contents = table_files.from_lines(path, signed(lines) if len(lines) > 1 else lines)
        if next(tables) % 20 == 0:  # making a table takes 10 ms
            (folder / "other.sqlite").unlink(missing_ok=True)
            with LatencyTable(folder / "other.sqlite") as table:
                table.add_contents(contents)
                table.entries()

    return of_file(path, parse)


@enters
def table_csv(folder: Path) -> Input:
    text = "net,run,layer,kind,cin,cout,ms\n" + "".join(
        f"big,{r},c{i},conv,{3 + i},16,4.{i}5\n" for r in (1, 2) for i in (0, 1)
    )
    path = folder / "layers.csv"
    path.write_text(text)

    def parse() -> object:
        lines = "\n".join(read_lines(path, next_step="save it as UTF-8"))
        shape = {"operator": "kind", "in_channels": "cin", "out_channels": "cout"}
        return from_csv(
            path, lines, foreign_conditions("slate5"), kernel=["layer"], ms="ms", run="run", shape=shape, network="net"
        )

    return of_file(path, parse, CorruptFile)


@enters
def samples_in_a_table(folder: Path) -> Input:
    storage = open_storage(folder / "table.sqlite")
    return of_text(lambda text: read_pass(storage, text, False), "[1.25, 1.5, 2]", CorruptFile)


@enters
def widths_in_a_table(folder: Path) -> Input:
    storage = open_storage(folder / "table.sqlite")
    return of_text(lambda text: read_widths(storage, text), "[8, 16, 24]", CorruptFile)


# Written by people


@enters
def configuration(folder: Path) -> Input:
    path = folder / "amc.toml"
    path.write_text(
        '# as always\nmodel = "resnet20"\nthreads = 2\nmacs_ratio = 0.5\noffline = false\nwaive = ["HOT"]\n'
    )
    command = typer.main.get_command(app)
    search = command.commands["search"]
    context = typer.Context(search, parent=typer.Context(command))
    return of_file(path, partial(flags_from, path, context), InvalidConfig)


@enters
def device_profile(folder: Path) -> Input:
    path = folder / "mine.toml"
    path.write_text(
        'summary = "my phone"\nthreads = 2\ncores = "4-7"\nmax_celsius = 38.5\n[[match]]\n'
        '"ro.product.model" = "Pixel 8.*"\n'
    )
    return of_file(path, partial(read_profile, path))


# Exported networks


@enters
def tflite_template(folder: Path) -> Input:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.operatorCodes, model.subgraphs = 3, [schema.OperatorCodeT()], [graph]
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.arange(32, dtype=np.float32).view(np.uint8)
    graph.tensors = [schema.TensorT() for _ in range(3)]
    for tensor, shape, buffer in zip(graph.tensors, ((1, 8), (4, 8), (1, 4)), (0, 1, 0), strict=True):
        tensor.shape, tensor.buffer, tensor.name = np.array(shape, np.int32), buffer, f"t{shape}"
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    operator.inputs, operator.outputs = [0, 1, -1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return template(folder / "original.tflite", "tflite", bytes(builder.Output()))


@enters
def onnx_template(folder: Path) -> Input:
    from onnx import TensorProto, helper, numpy_helper

    shapes = {"x": (1, 8), "y": (1, 4), "z": (1, 4)}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    weights = numpy_helper.from_array(np.arange(32, dtype=np.float32).reshape(4, 8), "w")
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), helper.make_node("Relu", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "net", [values["x"]], [values["z"]], [weights], value_info=[values["y"]])
    return template(folder / "original.onnx", "onnxruntime", helper.make_model(graph).SerializeToString())


def template(path: Path, runtime: str, content: bytes) -> Input:
    from amc_mobile.kernels.template import _parsed, file_format

    kinds = (CorruptFile, UnsupportedLayer)
    return of_file(path, lambda: _parsed(path, file_format(runtime)), *kinds, content=content)


# From strangers


def zipped(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("classes.jar", b"java" * 40)
        archive.writestr("jni/arm64-v8a/libonnxruntime.so", shared_library(ARM64, ("libc.so",), ("OrtGetApiBase",)))
    return file.getvalue()


@enters
def deflated_aar(folder: Path) -> Input:
    path = folder / "onnxruntime-android-1.29.0.aar"
    return of_file(path, partial(add_library, path, folder / "r"), content=zipped(zipfile.ZIP_DEFLATED))


@enters
def lzma_aar(folder: Path) -> Input:
    path = folder / "onnxruntime-android-1.29.0.aar"
    return of_file(path, partial(add_library, path, folder / "r"), content=zipped(zipfile.ZIP_LZMA))


@enters
def shared_object(folder: Path) -> Input:
    return Input(shared_library(ARM64, ("libdl.so", "libc.so"), ("OrtGetApiBase",)), read_elf)


# What adb and phones say


@enters
def list_of_phones(folder: Path) -> Input:
    text = (
        "2A061JEGR0   device usb:1-4 product:shiba model:Pixel_8 device:shiba transport_id:3\n"
        "emu unauthorized transport_id:4\n"
    )
    return of_text(parse_devices, text, PhoneOutputInvalid)


@enters
def runner_line(folder: Path) -> Input:
    def parse(content: bytes) -> None:
        for line in content.splitlines():
            parse_line(line)

    return Input(RECORDED.read_bytes(), parse)


DF = "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/block/a_long_name\n  900 500 400 56% /data\n"
TIMES = "cpu0 10 0 5 100 0 0 0 0 0 0\ncpu1 20 0 5 100 0 0 0 0 0 0\n"
PHONE_TEXTS: dict[str, tuple[Callable[[str], object], str]] = {
    "properties": (out.parse_properties, (STATE / "getprop.txt").read_text()),
    "core_list": (out.parse_core_list, "0-3,6 7"),
    "allowed_cores": (out.parse_allowed_cores, "Cpus_allowed_list:\t0-3\n"),
    "policies": (out.parse_cpu_policies, (STATE / "cpufreq.txt").read_text()),
    "cpu_info": (out.parse_processor_name, (STATE / "cpuinfo.txt").read_text()),
    "thermal": (out.parse_thermal, (STATE / "dumpsys_thermalservice.txt").read_text()),
    "battery": (out.parse_battery, (STATE / "dumpsys_battery.txt").read_text()),
    "free_space": (out.parse_free_bytes, DF),
    "switch": (lambda text: out.parse_switch(text, "low_power"), "1\n"),
    "benchmark_model": (parse_benchmark_model, CLASSIC),
    "benchmark_model_of_litert": (parse_benchmark_model, LITERT),
    "neighbours": (parse_neighbours, f"{TIMES}then\n{TIMES.replace('100', '200')}own\n7 (run) S{' 1' * 40}\n"),
}
for name, (parser, text) in PHONE_TEXTS.items():
    INPUTS[name] = partial(lambda parser, text, folder: of_text(parser, text, PhoneOutputInvalid), parser, text)


@pytest.mark.parametrize("name", INPUTS)
def test_a_mutated_input_gives_a_value_or_our_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path / "home"))
    entering = INPUTS[name](tmp_path)
    entering.parse(entering.content)
    rng = random.Random(name)
    refused = 0
    for _ in range(MUTATIONS):
        content = mutated(entering.content, rng)
        try:
            entering.parse(content)
        except AmcMobileError as error:
            assert isinstance(error, entering.kinds), content[:300]
            assert error.message
            assert error.next_step, (error.message, content[:300])
            refused += 1
        except Exception as error:
            raise AssertionError(f"{error!r} for {content[:2000]!r}") from error
    assert refused or name in ("list_of_phones", "plan_of_passes", "batch_left_on_a_phone", "neighbours", "switch")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 41 + "}", "a number of 41 digits"),
        ("[1e999]", "1e999 is too large"),
        ("[NaN]", "NaN is not JSON"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_beyond_the_limits_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_brackets_in_texts_are_no_depth() -> None:
    text = json.dumps({"a": "[{" * 1000, "b": '\\"[' * 100})
    assert parse_json(text) == json.loads(text)
    assert parse_json('["\\ud800 \\ud83d\\ude00"]') == ["? \U0001f600"]
