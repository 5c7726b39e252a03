"""Write the pruned network's files, check them against torch, measure them, and let the gate decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc_mobile import __version__
from amc_mobile.channels.plan import PruningPlan, WeightPlan
from amc_mobile.data.images import RESIZE_TO_CROP
from amc_mobile.data.sources import SOURCES
from amc_mobile.data.split import DataSplit
from amc_mobile.device.device import Device, Heat, Neighbours
from amc_mobile.device.phone_state import REMEDIES
from amc_mobile.errors import (
    AccuracyNotKept,
    AmbiguousDevice,
    BudgetNotMet,
    BudgetNotVerified,
    DeviceUnauthorized,
    DeviceUnavailable,
    InvalidConfig,
    InvalidInput,
    MissingDependency,
)
from amc_mobile.export.converters import EXPORTERS, QUANTIZERS, calibration_choice
from amc_mobile.export.metadata import (
    BudgetInfo,
    ImageInput,
    LatencyInfo,
    NetworkInfo,
    ShippedFile,
    describe_files,
)
from amc_mobile.export.parity import Floats, not_delegated, parity, run_file, sqnr_db
from amc_mobile.formats import BY_SUFFIX, FLOAT32, FORMATS, REMEDY, TFLITE, precision_problem
from amc_mobile.latency import protocol
from amc_mobile.latency.gate import STATUS_OF, Gate, Limit, all_passed, decided
from amc_mobile.latency.measurement import BUSY, ModelMeasurement, PairMeasurement, SustainedMeasurement
from amc_mobile.latency.protocol import ProtocolConfig, measure_model
from amc_mobile.models.loading import is_softmax
from amc_mobile.models.task import CLASSIFICATION, Detection, Task, logits
from amc_mobile.packing import PackedModule, forward_names
from amc_mobile.report.content import TOP1
from amc_mobile.report.tables import NOTHING, kilobytes, megahertz, number, percent
from amc_mobile.search.budget import format_cost
from amc_mobile.store import to_document, write_bytes
from amc_mobile.user_file import names_a_function
from amc_mobile.workflows.budgets import attached, settings_of
from amc_mobile.workflows.devices import OpenedDevice, chosen_runtime, device_of
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.runs import (
    BudgetRecord,
    ExportedFile,
    ExportGate,
    ExportRecord,
    Float32File,
    FurtherGate,
    OutputParity,
    Run,
    SearchRecord,
)
from amc_mobile.workflows.workspace import Progress, Settings, Workspace, check_settings, silent


def measured_pair(
    device: Device | None, original: Path | None, pruned: Path, limit: Limit | None, *, waived: Collection[str] = ()
) -> tuple[PairMeasurement, Gate | None] | None:
    """Original and pruned file in alternating blocks, and whether they meet `limit`; None without a device."""
    if device is None or original is None:
        return None
    before, after = original.read_bytes(), pruned.read_bytes()
    if limit is None:
        return protocol.measure_pair(device, before, after), None
    return decided(lambda: protocol.measure_pair(device, before, after), limit, waived=waived)


def own_gate(search: SearchRecord, files: Sequence[ExportedFile], runtime: str, *, offline: bool) -> Gate:
    """The gate of the search's own budget; `passed` is None where nothing was measured. `runtime`: of the search."""
    unit, limit = search.budget.unit, search.budget.limit
    if unit != "ms":
        return search.budgets[0].count_gate()
    if offline:
        return Gate(
            None, None, limit, f"predicted {format_cost(search.predicted_cost, unit)} of {format_cost(limit, unit)}"
        )
    decisions = [file.decision for file in files if file.runtime == runtime and file.decision]
    missing = Gate(False, None, limit, f"no file for {runtime}, the runtime of the search, was measured")
    return decisions[0] if decisions else missing


def further_gate(
    budget: BudgetRecord, files: Sequence[ExportedFile], settings: Settings, progress: Progress,
    *, original: Callable[[str], Path],
) -> FurtherGate:  # fmt: skip
    """The gate of one more budget of the search, with the pair that was measured."""
    pair = None
    if budget.unit != "ms":
        gate = budget.count_gate()
    else:
        file = next((file for file in files if file.runtime == budget.runtime), None)
        why = "the device is not attached" if file else f"no file for {budget.runtime} was exported"
        gate = Gate(
            limit=budget.limit,
            text=f"predicted {budget.predicted_cost:.3f} ms of {budget.limit:.3f} ms, not measured: {why}",
        )
        other = settings_of(settings, budget.device)
        if file and (device := attached(other, progress, runtime=budget.runtime)):
            before, after = original(file.format).read_bytes(), Path(file.path).read_bytes()
            pair, gate = decided(
                lambda: protocol.measure_pair(device, before, after), Limit(budget.limit), waived=other.waived
            )
    return FurtherGate(
        gate.passed, gate.cost, budget.limit, f"{budget.asked}: {gate.text}", gate.attempts, budget.asked, pair
    )


def all_of(gate: Gate, further: tuple[FurtherGate, ...]) -> ExportGate:
    gates = (gate, *further)
    text = "; ".join(each.text for each in gates)
    passed = all_passed(each.passed for each in gates)
    return ExportGate(passed, gate.cost, gate.limit, text, gate.attempts, gate.passed, gate.text, further)


SHORTEST_S, LONGEST_S = 1.0, 3600.0  # of a sustained measurement
LOWEST_FPS, HIGHEST_FPS = 1.0, 1000.0
SUSTAINED_STAGE = "measure over time, s"


def measurement_text(measurement: ModelMeasurement) -> str:
    text = (
        f"p50 {measurement.p50_ms:.3f} ms (95 % CI {measurement.ci_low_ms:.3f}-{measurement.ci_high_ms:.3f})   "
        f"p90 {measurement.p90_ms:.3f} ms"
    )
    return text + (f"   flags: {', '.join(measurement.flags)}" if measurement.flags else "")


def session_lines(measurement: ModelMeasurement) -> list[str]:
    """Load, first inference and memory of the sessions; clocks and screen of the device during them."""
    sessions = [
        f"load {number(measurement.load_ms)} ms" if measurement.load_ms is not None else "",
        f"first inference {number(measurement.first_ms)} ms" if measurement.first_ms is not None else "",
        f"peak memory {kilobytes(measurement.peak_rss_kb)}" if measurement.peak_rss_kb is not None else "",
    ]
    top = percent(measurement.top_clock_share)
    device = [
        f"clock {megahertz(measurement.mean_mhz)} on average, {top} of the time at the highest"
        if top != NOTHING
        else "",
        f"{number(measurement.switches_per_sample)} involuntary context switches per sample"
        if measurement.switches_per_sample is not None
        else "",
        f"screen {measurement.screen}" if measurement.screen else "",
    ]
    return ["   ".join(filter(None, line)) for line in (sessions, device) if any(line)]


@dataclass(frozen=True)
class Cadence:
    """Runs a second, as an app makes them that gets so many frames."""

    fps: float

    def document(self, samples_ms: Sequence[float]) -> dict[str, Any]:
        return {"cadence_fps": self.fps, "late_share": self._late_share(samples_ms)}

    def text(self, samples_ms: Sequence[float]) -> str:
        return (
            f"{self.fps:g} runs a second, with gaps; {self._late_share(samples_ms):.1%} of the runs took longer than "
            f"the {1000 / self.fps:.1f} ms from one to the next"
        )

    def _late_share(self, samples_ms: Sequence[float]) -> float:
        return sum(value > 1000 / self.fps for value in samples_ms) / len(samples_ms)


def _cadence(fps: float | None) -> Cadence | None:
    return Cadence(fps) if fps is not None else None


@dataclass(frozen=True)
class _FileMeasured:
    """What both ways to measure a file give. `neighbours`: highest load of other programs meanwhile."""

    file: str
    neighbours: Neighbours | None
    cadence: Cadence | None

    def _document(self, measured: Mapping[str, Any], samples_ms: Sequence[float]) -> dict[str, Any]:
        neighbours = self.neighbours.to_document() if self.neighbours else None
        paced = self.cadence.document(samples_ms) if self.cadence else {}
        return {"file": self.file, **measured, "neighbours": neighbours, **paced}

    def _text(self, lines: list[str], samples_ms: Sequence[float]) -> str:
        lines += [self.cadence.text(samples_ms)] if self.cadence else []
        if self.neighbours is not None and self.neighbours.is_busy:
            lines += [f"Warning: {self.neighbours.text()} [{BUSY}]", f"next: {REMEDIES[BUSY]}"]
        return "\n  ".join(lines)


@dataclass(frozen=True)
class MeasureResult(_FileMeasured):
    measurement: ModelMeasurement

    def document(self) -> dict[str, Any]:
        return self._document(self.measurement.to_document(), self._runs_ms)

    def text(self) -> str:
        lines = [self.file, measurement_text(self.measurement), *session_lines(self.measurement)]
        return self._text(lines, self._runs_ms)

    @property
    def p50_ms(self) -> float:
        return self.measurement.p50_ms

    @property
    def _runs_ms(self) -> list[float]:
        return [value for samples in self.measurement.samples_ms for value in samples]


@dataclass(frozen=True)
class SustainedResult(_FileMeasured):
    measurement: SustainedMeasurement

    def document(self) -> dict[str, Any]:
        return self._document({"sustained": self.measurement.to_document()}, self.measurement.samples_ms)

    def text(self) -> str:
        measured = self.measurement
        lines = [
            f"{self.file}: {len(measured.samples_ms)} runs in {measured.seconds:.0f} s",
            *(
                f"until {window.ended_s:6.1f} s   p50 {window.p50_ms:.3f} ms   p90 {window.p90_ms:.3f} ms   "
                f"{slowdown:.2f}x the fastest{_heat_text(window.heat)}"
                for window, slowdown in zip(measured.windows, measured.slowdowns, strict=True)
            ),
            f"all runs       p50 {measured.p50_ms:.3f} ms   p90 {measured.p90_ms:.3f} ms   "
            f"at the end {measured.slowdowns[-1]:.2f}x as long as in the fastest window",
        ]
        return self._text(lines, measured.samples_ms)


def _heat_text(heat: Heat) -> str:
    return "".join(
        [
            "" if heat.celsius is None else f"   {heat.celsius:.1f} C",
            "" if heat.clock_mhz is None else f"   clock {heat.clock_mhz:.0f} MHz",
            "" if heat.clock_limit_mhz is None else f"   clock limit {heat.clock_limit_mhz:.0f} MHz",
        ]
    )


def measure(
    path: Path | str, device: OpenedDevice | str = "host", *, cadence_fps: float | None = None,
    progress: Progress = silent,
) -> MeasureResult:  # fmt: skip
    """Measures the latency of one .tflite or .onnx file in ten passes. `cadence_fps`: runs a second, as an app makes
    them; None: back to back. Raises InvalidInput, InvalidConfig, DeviceError.

        amc.measure("model.tflite", amc.open_device("pixel", threads=2)).p50_ms
    """
    settings, runtime, config = _checked(Path(path), device, cadence_fps)
    progress("measure", 0, 1)
    opened = device_of(settings, runtime, progress)
    measurement = measure_model(opened, Path(path).read_bytes(), config)
    progress("measure", 1, 1)
    return MeasureResult(str(path), opened.most_neighbours(), _cadence(cadence_fps), measurement)


def measure_sustained(
    path: Path | str, device: OpenedDevice | str = "host", *, seconds: float = 60.0, cadence_fps: float | None = None,
    progress: Progress = silent,
) -> SustainedResult:  # fmt: skip
    """As `measure`, for so many seconds without letting the device cool: p50 and p90 over time as it heats up.

    amc.measure_sustained("model.tflite", "pixel", seconds=120).measurement.slowdowns
    """
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise InvalidConfig(
            f"--sustained-s {seconds:g} is not between {SHORTEST_S:g} and {LONGEST_S:g} seconds",
            next_step="pass, for example, --sustained-s 60",
        )
    settings, runtime, config = _checked(Path(path), device, cadence_fps)
    total = math.ceil(seconds)
    progress(SUSTAINED_STAGE, 0, total)
    opened = device_of(settings, runtime, progress)

    def on_window(done_s: float) -> None:
        progress(SUSTAINED_STAGE, min(int(done_s), total), total)

    measured = protocol.measure_sustained(opened, Path(path).read_bytes(), seconds, on_window=on_window, config=config)
    progress(SUSTAINED_STAGE, total, total)
    return SustainedResult(str(path), opened.most_neighbours(), _cadence(cadence_fps), measured)


def measure_pair(
    before: Path | str, after: Path | str, device: OpenedDevice | str = "host", *, cpu_time: bool = False
) -> PairMeasurement:
    """Measures two files of one format in rounds that alternate, so that a slow minute slows both.

    `cpu_time`: the processor time of the thread counts, not the clock on the wall: for busy computers.

        amc.measure_pair("original.tflite", "model.tflite").speedup
    """
    settings, runtime, _ = _checked(Path(after), device, None)
    opened = device_of(settings, runtime, silent)
    files = Path(before).read_bytes(), Path(after).read_bytes()
    return protocol.measure_pair(opened, *files, ProtocolConfig(cpu_time=cpu_time))


def _checked(file: Path, device: OpenedDevice | str, cadence_fps: float | None) -> tuple[Settings, str, ProtocolConfig]:
    """The device's settings, the file's runtime and how passes are made. Raises InvalidInput, InvalidConfig."""
    if cadence_fps is not None and not LOWEST_FPS <= cadence_fps <= HIGHEST_FPS:
        raise InvalidConfig(
            f"--cadence-fps {cadence_fps:g} is not between {LOWEST_FPS:g} and {HIGHEST_FPS:g} runs a second",
            next_step="pass, for example, --cadence-fps 30",
        )
    if file.suffix not in BY_SUFFIX:
        raise InvalidInput(
            f"{file}: not a {' or '.join(BY_SUFFIX)} file", next_step="give a file of one of these formats"
        )
    if not file.is_file():
        raise InvalidInput(f"no file {file}", next_step="check the path")
    settings = device.settings if isinstance(device, OpenedDevice) else Settings(device=device)
    check_settings(settings)
    runtime = BY_SUFFIX[file.suffix].runtime
    if settings.runtime and chosen_runtime(settings) != runtime:
        raise InvalidConfig(
            f"{settings.runtime} does not run {file.suffix} files", next_step=f"leave --runtime out, or use {runtime}"
        )
    return settings, runtime, ProtocolConfig(cadence_fps=cadence_fps or 0.0)


@dataclass(frozen=True)
class ExportResult:
    run: str
    record: ExportRecord

    def document(self) -> dict[str, Any]:
        return {"run": self.run, **to_document(self.record)}

    def text(self) -> str:
        record = self.record
        lines = [f"run {self.run}: exported the {record.stage} network"]
        for file in record.files:
            lines += _file_lines(file, record.metric, record.accuracy_on)
        if record.granularity == "weight":
            lines.append(
                "  zeros are stored and multiplied like any other weight: size and latency do not follow the density"
            )
        gate = record.gate
        lines.append(f"  {STATUS_OF[gate.passed]}: {gate.text}")
        gates = [("", gate.attempts), *((f" ({other.asked})", other.attempts) for other in gate.further)]
        lines += [f"  measured again{asked}: {a.why}" for asked, attempts in gates for a in attempts[1:]]
        if record.accuracy_kept is False:
            lines.append("  FAIL: the accuracy that --max-loss asks for is not kept")
        return "\n".join(lines)

    @property
    def passed(self) -> bool | None:
        """Whether every budget is met, by measurement; None where one was not measured."""
        return self.record.gate.passed

    def __getitem__(self, form: str) -> ExportedFile:
        """The file of a format, "tflite" or "onnx". Raises KeyError for one that was not exported."""
        return {file.format: file for file in self.record.files}[form]

    def raise_if_not_passed(self) -> None:
        """Raises BudgetNotMet (exit 3) when the gate says so, BudgetNotVerified (exit 4) when nothing was measured,
        AccuracyNotKept (exit 3) when --max-loss is not kept."""
        gate = self.record.gate
        if gate.passed is None:
            raise BudgetNotVerified(
                f"the budget was not verified on the device: {gate.text}",
                next_step="attach the device and run `amc-mobile export` without --offline",
            )
        if not gate.passed:
            raise BudgetNotMet(
                f"the budget is not met: {gate.text}",
                next_step="search with a lower budget, or measure on a quiet device and export again",
            )
        if self.record.accuracy_kept is False:
            raise AccuracyNotKept(
                "the exported network loses more accuracy than --max-loss allows",
                next_step="fine-tune and export again, or search with a larger budget or --max-loss",
            )


def _file_lines(file: ExportedFile, metric: str, accuracy_on: str) -> list[str]:
    compared = "" if metric == TOP1 else " of the anchors"
    lines = [
        f"  {file.path}  {file.bytes / 1e6:.3f} MB  {metric} {file.test_top1:.1%} on {accuracy_on}  parity: max "
        f"difference {file.parity.max_abs:.1e}, same class {file.parity.top1_agreement:.1%}{compared}"
    ]
    for part in file.output_parity:
        shape = " x ".join(map(str, part.shape))
        lines.append(
            f"    output {part.output} ({shape}): max difference {part.max_abs:.1e} of values up to {part.largest:.3g}"
        )
    if file.float32:
        lines.append(
            f"    {file.precision}, SQNR {file.sqnr_db:.1f} dB; before: {file.float32.bytes / 1e6:.3f} MB  "
            f"{metric} {file.float32.test_top1:.1%}"
        )
    if file.problem:
        lines += [f"    warning: {file.problem}", f"    next: {REMEDY}"]
    if file.not_delegated:
        lines.append(f"    not taken by XNNPACK: {', '.join(file.not_delegated)}")
    if file.pair:
        after = file.pair.after
        lines.append(
            f"    p50 {after.p50_ms:.3f} ms (95 % CI {after.ci_low_ms:.3f}-{after.ci_high_ms:.3f}), "
            f"original {file.pair.before.p50_ms:.3f} ms: {file.pair.speedup:.2f}x"
            + (f"   flags: {', '.join(file.pair.flags)}" if file.pair.flags else "")
        )
    return lines


def export_run(
    space: Workspace,
    *,
    run: str | None,
    formats: list[str],
    progress: Progress,
    changed: Mapping[str, str | None] | None = None,
    offline: bool = False,
    kotlin: bool = False,
) -> ExportResult:
    """Exports a run's best weights. A latency budget is held against the file of the runtime it was searched for.

    `changed`: fields of Settings in place of those searched with; None leaves one as it was: precision, serial, waive,
    clock_mode. Quantised files are made anew from the final weights, with calibration images; the original they are
    measured against is quantised alike.
    `offline`: the files are checked against torch and not measured; a latency budget stays open. `kotlin`: writes an
    Android snippet, too.
    """
    folder = Run(space.run_folder(run))
    given: dict[str, Any] = {key: value for key, value in (changed or {}).items() if value is not None}
    settings = replace(folder.settings(), **given)
    if given:
        check_settings(settings)
    with space.working_on(folder.name):
        return _exported(folder, formats, settings, progress, offline=offline, kotlin=kotlin)


def _exported(
    folder: Run, formats: list[str], settings: Settings, progress: Progress, *, offline: bool, kotlin: bool
) -> ExportResult:
    check_quantizers(settings.precision, formats)
    exporter, search = _Exporter(folder, settings), folder.search()
    if kotlin and not takes_a_picture(exporter.network):
        raise InvalidConfig(
            "there is an Android snippet only for networks that take one image, grey or RGB",
            next_step="leave --kotlin out: model.json says how to feed the files",
        )
    runtime = chosen_runtime(settings)  # of the search
    # Before the exports: a phone that is not there should not take minutes to be missed.
    devices = {form: None if offline else _device(settings, form, progress) for form in formats}
    files: list[ExportedFile] = []
    for position, form in enumerate(formats):
        progress("export", position, len(formats), form)
        exporter.write(form)
        # Files for another runtime than the search's are measured, and no budget speaks of them.
        files.append(exporter.checked(form, devices[form], is_held=FORMATS[form].runtime == runtime))
    progress("export", len(formats), len(formats))
    further = tuple(
        further_gate(budget, files, replace(settings, offline=offline), progress, original=exporter.original)
        for budget in search.budgets[1:]
    )
    own = own_gate(search, files, runtime, offline=offline)
    files = exporter.describe(files, [own.passed, *(gate.passed for gate in further)], kotlin=kotlin)
    stage, data, task = exporter.stage, exporter.data, exporter.network.task
    record = ExportRecord(
        stage, folder.stage_sha256(stage), runtime, settings.precision, folder.search_config().granularity,
        task.accuracy(exporter.reference, data.test.labels), task.metric, data.accuracy_on, tuple(files),
        all_of(own, further), folder.accuracy_kept(),
    )  # fmt: skip
    folder.save(record)
    return ExportResult(folder.name, record)


class _Exporter:
    """The files of one export: written, checked against torch, measured and described."""

    def __init__(self, run: Run, settings: Settings) -> None:
        config = run.search_config()
        self._run, self._settings, self._search, self._ratio = run, settings, run.search(), config.latency_ratio
        self.network, self.stage = run.original(), run.best_stage()
        self.data = self.network.split(
            calibration=config.calibration_images, reward=config.reward_images, seed=settings.seed
        )
        self._model = run.load_pruned(self.network, self.stage)
        self._images, self.reference = self.data.test.normalised().numpy(), logits(self._model, self.data.test)
        chosen = self.data.calibration.subset(calibration_choice(len(self.data.calibration)))
        self._calibration = chosen.normalised().numpy()
        self.info = network_info(self.network, self.data, self._search.plan)
        self._shipped: dict[Path, ShippedFile] = {}

    def write(self, form: str) -> None:
        """The file of a format, and the float32 file where that is another one."""
        plain, path = (self._path("model", form, precision) for precision in (FLOAT32, self._settings.precision))
        EXPORTERS[form](self._model, self.network.input_shape, plain)
        exported = plain.read_bytes()
        self._ship(plain, exported, form, FLOAT32)
        if path != plain:
            quantised = QUANTIZERS[form](exported, self._settings.precision, self._calibration)
            self._ship(path, quantised, form, self._settings.precision)

    def _ship(self, path: Path, exported: bytes, form: str, precision: str) -> None:
        content = output_content(self.network.task, self.reference)
        budgets = tuple(BudgetInfo(b.asked, b.unit, _short(b.limit), b.device) for b in self._search.budgets)
        self._shipped[path] = ShippedFile.of(
            exported, form, precision, self.info, names=forward_names(self.network.module, content),
            output_content=content, budgets=budgets,
        )  # fmt: skip
        write_bytes(path, self._shipped[path].content)

    def checked(self, form: str, device: Device | None, *, is_held: bool) -> ExportedFile:
        """What the file computes and, with a device, how long it takes. `is_held`: against the search's own budget."""
        plain, path = (self._path("model", form, precision) for precision in (FLOAT32, self._settings.precision))
        before = None
        if path != plain:
            before = Float32File(str(plain), plain.stat().st_size, self._accuracy(run_file(plain, self._images)))
        outputs, reference = run_file(path, self._images), self.reference.numpy()
        accuracy, sqnr = self._accuracy(outputs), sqnr_db(outputs, reference)
        limit = None
        if is_held and self._search.budget.unit == "ms":
            limit = Limit(self._search.budget.limit, self._ratio)
        original = self.original(form) if device else None
        pair, decision = measured_pair(device, original, path, limit, waived=self._settings.waived) or (None, None)
        left_out = not_delegated(path.read_bytes()) if form == TFLITE.name else None
        task = self.network.task
        problem = precision_problem(
            self._settings.precision, task.metric, before.test_top1, accuracy, len(self.data.test), sqnr
        ) if before else ""  # fmt: skip
        return ExportedFile(
            form, self._settings.precision, FORMATS[form].runtime, str(path), path.stat().st_size, "", accuracy,
            parity(outputs, reference, lambda values: task.predicted_classes(torch.from_numpy(values)).numpy()),
            _by_output(self.network.module, outputs, self.reference),
            sqnr_db=sqnr if before else None, float32=before, problem=problem,
            not_delegated=tuple(left_out) if left_out is not None else None,
            pair=pair, decision=decision, original_bytes=original.stat().st_size if original else None,
        )  # fmt: skip

    def original(self, form: str) -> Path:
        """The original network's file, written where it is missing."""
        plain, path = (self._path("original", form, precision) for precision in (FLOAT32, self._settings.precision))
        if not plain.exists():
            EXPORTERS[form](self.network.module, self.network.input_shape, plain)
        if not path.exists():
            quantised = QUANTIZERS[form](plain.read_bytes(), self._settings.precision, self._calibration)
            write_bytes(path, quantised)
        return path

    def describe(self, files: list[ExportedFile], met: Sequence[bool | None], *, kotlin: bool) -> list[ExportedFile]:
        """Adds what is known now to the metadata of `files`, and writes model.json and what goes with it.

        `met`: of each budget of the search, in their order. The files keep every byte outside of their metadata.
        """
        described: dict[str, ShippedFile] = {}
        for file in files:
            if file.float32:
                plain = Path(file.float32.path)
                described[plain.name] = self._shipped[plain].filled(accuracy=file.float32.test_top1)
            shipped = self._shipped[Path(file.path)]
            budgets = tuple(
                replace(info, met=passed) if budget.unit != "ms" or budget.runtime == file.runtime else info
                for info, budget, passed in zip(shipped.info.budgets, self._search.budgets, met, strict=True)
            )
            described[Path(file.path).name] = shipped.filled(
                accuracy=file.test_top1, budgets=budgets, latency=_latency_info(file.pair)
            )
        for name, shipped in described.items():
            write_bytes(self._run.folder / name, shipped.content)
        describe_files(self._run.folder, described, kotlin=kotlin)
        return [replace(file, sha256=described[Path(file.path).name].sha256) for file in files]

    def _path(self, name: str, form: str, precision: str) -> Path:
        return self._run.folder / (f"{name}.{form}" if precision == FLOAT32 else f"{name}_{precision}.{form}")

    def _accuracy(self, outputs: Floats) -> float:
        return self.network.task.accuracy(torch.from_numpy(outputs), self.data.test.labels)


def takes_a_picture(network: Network) -> bool:
    """Whether the network's only input is an image, grey or RGB."""
    return network.dataset is not None and not network.dataset.input_shapes and network.input_shape[1] in COLOURS


COLOURS = {1: "grey", 3: "RGB"}  # by channels


def network_info(network: Network, data: DataSplit, plan: PruningPlan | WeightPlan) -> NetworkInfo:
    dataset, test = network.dataset, data.test
    assert dataset is not None  # it was split
    sizes, kept = (
        (plan.channels, plan.kept_channels) if isinstance(plan, PruningPlan) else (plan.weights, plan.kept_weights)
    )
    image = None
    if not dataset.input_shapes:
        is_stored = test.images.dtype == torch.uint8
        channels, height = network.input_shape[1], network.input_shape[2]
        image = ImageInput(
            COLOURS.get(channels, ""), (0.0, 255.0) if is_stored else None, 255.0 if is_stored else 1.0,
            tuple(map(_short, test.mean.tolist())), tuple(map(_short, test.std.tolist())), dataset.resize,
            round(height * RESIZE_TO_CROP) if dataset.resize == "crop" else None,
        )  # fmt: skip
    task = network.task
    return NetworkInfo(
        __version__, _without_folder(network.settings.model), _without_folder(network.settings.data),
        "classification" if task is CLASSIFICATION else "detection" if isinstance(task, Detection) else "other",
        image, dataset.classes if dataset.num_classes is not None else (), task.metric, data.accuracy_on,
        {name: (size, kept[name]) for name, size in sizes.items()},
    )  # fmt: skip


def _without_folder(spec: str) -> str:
    """`imagefolder:/home/me/cats` -> `imagefolder`, `nets/own.py:build` -> `own.py:build`."""
    if names_a_function(spec):
        return Path(spec).name
    kind = spec.partition(":")[0]
    return kind if f"{kind}:PATH" in SOURCES else spec


def output_content(task: Task, outputs: Tensor) -> str:
    """What a network's output holds, by its task and its outputs (N, ...) for some images."""
    if task is CLASSIFICATION:
        return "probabilities" if is_softmax(outputs) else "logits"
    return "detections" if isinstance(task, Detection) else "values"


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _latency_info(pair: PairMeasurement | None) -> LatencyInfo | None:
    if pair is None:
        return None
    after, where = pair.after, pair.after.conditions
    return LatencyInfo(
        _short(after.p50_ms), _short(after.ci_low_ms), _short(after.ci_high_ms), _short(after.p90_ms),
        _short(pair.before.p50_ms), where.device, where.soc, where.os, where.runtime, where.runtime_version,
        where.delegate, where.threads,
    )  # fmt: skip


def check_quantizers(precision: str, formats: list[str]) -> None:
    """Raises InvalidConfig for a format that cannot be had in this precision."""
    for form in formats:
        if precision not in FORMATS[form].precisions:
            raise InvalidConfig(
                f"there is no {precision} for .{form} files", next_step="export with --tflite, or with --int8"
            )


def _by_output(module: nn.Module, outputs: Floats, reference: Tensor) -> tuple[OutputParity, ...]:
    """Of a network with several outputs, the parity of each."""
    if not isinstance(module, PackedModule) or len(module.packing.output_shapes) < 2:
        return ()
    sides = (module.packing.outputs(side) for side in (torch.from_numpy(outputs), reference))
    return tuple(
        OutputParity(index, tuple(ours.shape[1:]), float((ours - torchs).abs().max()), float(torchs.abs().max()))
        for index, (ours, torchs) in enumerate(zip(*sides, strict=True))
    )


def _device(settings: Settings, form: str, progress: Progress) -> Device | None:
    """None where the device has no runtime for a format; the other format may still be measured."""
    try:
        return device_of(settings, FORMATS[form].runtime, progress)
    except (MissingDependency, InvalidInput):
        if FORMATS[form].runtime == chosen_runtime(settings):
            raise
        return None
    except (AmbiguousDevice, DeviceUnauthorized):
        raise
    except DeviceUnavailable as error:  # another device would not show that the run's budget is met
        error.next_step = f"attach the device of the run, {settings.device}; or pass --offline to export without it"
        raise
