"""Write the pruned network's files, check them against torch, measure them, and let the gate decide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.data import DataSplit
from amc_mobile.device.timing import Device
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
from amc_mobile.export.interpret import Floats, not_delegated
from amc_mobile.export.parity import file_logits, parity, sqnr_db
from amc_mobile.export.precision import FLOAT32, REMEDY, precision_problem
from amc_mobile.export.quantize import QUANTIZERS, calibration_choice
from amc_mobile.export.to_onnx import to_onnx
from amc_mobile.export.to_tflite import to_tflite
from amc_mobile.models.evaluation import logits
from amc_mobile.models.task import Task
from amc_mobile.packing import PackedModule
from amc_mobile.report.content import TOP1
from amc_mobile.store import write_bytes
from amc_mobile.workflows.gate import all_of, further_gate, measured_pair, own_gate, own_limit
from amc_mobile.workflows.measuring import chosen_runtime, open_device
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.runs import Run
from amc_mobile.workflows.workspace import Settings, Workspace, check_settings

EXPORTERS = {"tflite": to_tflite, "onnx": to_onnx}
RUNTIMES = {"tflite": "tflite", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class ExportResult:
    run: str
    result: dict[str, Any]

    def document(self) -> dict[str, Any]:
        return {"run": self.run, **self.result}

    def text(self) -> str:
        lines = [f"run {self.run}: exported the {self.result['stage']} network"]
        metric = self.result["metric"]
        compared = "" if metric == TOP1 else " of the anchors"
        for file in self.result["files"]:
            lines.append(
                f"  {file['path']}  {file['bytes'] / 1e6:.3f} MB  {metric} {file['test_top1']:.1%} "
                f"on {self.result['accuracy_on']}  parity: "
                f"max difference {file['parity']['max_abs']:.1e}, "
                f"same class {file['parity']['top1_agreement']:.1%}{compared}"
            )
            for part in file["output_parity"]:
                shape = " x ".join(map(str, part["shape"]))
                lines.append(
                    f"    output {part['output']} ({shape}): max difference {part['max_abs']:.1e} "
                    f"of values up to {part['largest']:.3g}"
                )
            if file["float32"]:
                lines.append(
                    f"    {file['precision']}, SQNR {file['sqnr_db']:.1f} dB; before: "
                    f"{file['float32']['bytes'] / 1e6:.3f} MB  {metric} {file['float32']['test_top1']:.1%}"
                )
            if file["problem"]:
                lines += [f"    warning: {file['problem']}", f"    next: {REMEDY}"]
            if file["not_delegated"]:
                lines.append(f"    not taken by XNNPACK: {', '.join(file['not_delegated'])}")
            if file["pair"]:
                after, before = file["pair"]["after"], file["pair"]["before"]
                lines.append(
                    f"    p50 {after['p50_ms']:.3f} ms (95 % CI {after['ci_low_ms']:.3f}-{after['ci_high_ms']:.3f}), "
                    f"original {before['p50_ms']:.3f} ms: {file['pair']['speedup']:.2f}x"
                    + (f"   flags: {', '.join(file['pair']['flags'])}" if file["pair"]["flags"] else "")
                )
        if self.result["granularity"] == "weight":
            lines.append(
                "  zeros are stored and multiplied like any other weight: size and latency do not follow the density"
            )
        gate = self.result["gate"]
        said = {True: "PASS", False: "FAIL", None: "PREDICTED, NOT MEASURED"}
        lines.append(f"  {said[gate['passed']]}: {gate['text']}")
        lines += [
            f"  measured again{asked}: {attempt['why']}"
            for asked, one in (("", gate), *((f" ({one['asked']})", one) for one in gate["further"]))
            for attempt in one["attempts"][1:]
        ]
        if self.result["accuracy_kept"] is False:
            lines.append("  FAIL: the accuracy that --max-loss asks for is not kept")
        return "\n".join(lines)

    def raise_if_not_passed(self) -> None:
        """Raises BudgetNotMet (exit 3) when the gate says so, BudgetNotVerified (exit 4) when nothing was measured,
        AccuracyNotKept (exit 3) when --max-loss is not kept."""
        if self.result["gate"]["passed"] is None:
            raise BudgetNotVerified(
                f"the budget was not verified on the device: {self.result['gate']['text']}",
                next_step="attach the device and run `amc-mobile export` without --offline",
            )
        if not self.result["gate"]["passed"]:
            raise BudgetNotMet(
                f"the budget is not met: {self.result['gate']['text']}",
                next_step="search with a lower budget, or measure on a quiet device and export again",
            )
        if self.result["accuracy_kept"] is False:
            raise AccuracyNotKept(
                "the exported network loses more accuracy than --max-loss allows",
                next_step="fine-tune and export again, or search with a larger budget or --max-loss",
            )


def export_run(
    space: Workspace,
    *,
    run: str | None,
    formats: list[str],
    progress: Progress,
    changed: Mapping[str, Any] | None = None,
    offline: bool = False,
) -> ExportResult:
    """Exports a run's best weights. A latency budget is held against the file of the runtime it was searched for.

    `changed`: fields of Settings in place of those searched with; None leaves one as it was: precision, serial, waive,
    clock_mode. Quantised files are made anew from the final weights, with calibration images; the original they are
    measured against is quantised alike.
    `offline`: the files are checked against torch and not measured; a latency budget stays open.
    """
    folder = Run(space.run_folder(run))
    given = {key: value for key, value in (changed or {}).items() if value is not None}
    settings = replace(folder.settings(), **given)
    if given:
        check_settings(settings)
    with space.working_on(folder.folder.name):
        return _exported(space, folder, formats, settings, progress, offline=offline)


def _exported(
    space: Workspace, folder: Run, formats: list[str], settings: Settings, progress: Progress, *, offline: bool
) -> ExportResult:
    check_quantizers(settings, formats)
    wanted, search = folder.read("settings")["search"], folder.read("search")
    network = folder.original(space, settings)
    data = network.split(calibration=wanted["calibration_images"], reward=wanted["reward_images"], seed=settings.seed)
    stage = folder.best_stage()
    model = folder.load_pruned(network, stage)
    images = data.test.normalised().numpy()
    reference = logits(model, data.test)
    limit = own_limit(search, wanted["latency_ratio"])
    chosen = data.calibration.subset(calibration_choice(len(data.calibration)))
    calibration = chosen.normalised().numpy()
    # Before the exports: a phone that is not there should not take minutes to be missed.
    devices = {form: None if offline else _device(settings, form, progress) for form in formats}
    files = []
    for position, form in enumerate(formats):
        progress("export", position, len(formats), form)
        plain, path = (_file(folder, "model", form, p) for p in (FLOAT32, settings.precision))
        EXPORTERS[form](model, network.input_shape, plain)
        before: dict[str, Any] | None = None
        if path != plain:
            _quantize(plain, path, form, settings, calibration)
            before = {
                "path": str(plain), "bytes": plain.stat().st_size,
                "test_top1": _accuracy(network, file_logits(plain, images), data),
            }  # fmt: skip
        outputs = file_logits(path, images)
        accuracy, sqnr = _accuracy(network, outputs, data), sqnr_db(outputs, reference.numpy())
        original = _original(network, folder, form, settings, calibration) if devices[form] else None
        # Files for another runtime than the search's are measured, and no budget speaks of them.
        held = limit if limit is not None and RUNTIMES[form] == chosen_runtime(settings) else None
        pair, decision = measured_pair(devices[form], original, path, held, waived=settings.waived) or (None, None)
        files.append(
            {
                "format": form, "precision": settings.precision, "runtime": RUNTIMES[form],
                "path": str(path), "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "test_top1": accuracy,
                "parity": parity(outputs, reference.numpy(), _classes_by(network.task)).to_document(),
                "output_parity": _by_output(network.module, outputs, reference),
                "sqnr_db": sqnr if before else None, "float32": before,
                "problem": precision_problem(
                    settings.precision, network.task.metric, before["test_top1"], accuracy, len(data.test), sqnr
                ) if before else "",
                "not_delegated": not_delegated(path.read_bytes()) if form == "tflite" else None,
                "pair": pair.to_document() if pair else None,
                "decision": decision.to_document() if decision else None,
                "original_bytes": original.stat().st_size if original else None,
            }
        )  # fmt: skip
    progress("export", len(formats), len(formats))
    gate = own_gate(search, files, settings, offline=offline)
    further = [
        further_gate(
            row,
            search,
            files,
            replace(settings, offline=offline),
            progress,
            original=lambda form: _original(network, folder, form, settings, calibration),
        )
        for row in search.get("budgets", [])[1:]
    ]
    document = {
        "stage": stage, "weights_sha256": folder.stage_sha256(stage),
        "runtime": chosen_runtime(settings),  # of the search
        "precision": settings.precision, "granularity": wanted.get("granularity", "channel"),
        "test_top1": network.task.accuracy(reference, data.test.labels), "metric": network.task.metric,
        "accuracy_on": data.accuracy_on, "files": files, "gate": all_of(gate, further),
        "accuracy_kept": folder.accuracy_kept(),
    }  # fmt: skip
    folder.write("export", document)
    return ExportResult(folder.folder.name, document)


def check_quantizers(settings: Settings, formats: list[str]) -> None:
    """Raises InvalidConfig for a format that cannot be had in the settings' precision."""
    if settings.precision == "float16" and "onnx" in formats:
        raise InvalidConfig("there is no float16 for .onnx files", next_step="export with --tflite, or with --int8")


def _file(run: Run, name: str, form: str, precision: str) -> Path:
    return run.folder / (f"{name}.{form}" if precision == FLOAT32 else f"{name}_{precision}.{form}")


def _quantize(source: Path, path: Path, form: str, settings: Settings, calibration: Floats) -> None:
    _, quantize = QUANTIZERS[RUNTIMES[form]]
    write_bytes(path, quantize(source.read_bytes(), settings.precision, calibration))


def _accuracy(network: Network, outputs: Floats, data: DataSplit) -> float:
    return network.task.accuracy(torch.from_numpy(outputs), data.test.labels)


def _classes_by(task: Task) -> Callable[[Floats], NDArray[np.int64]]:
    return lambda outputs: task.predicted_classes(torch.from_numpy(outputs)).numpy()


def _original(network: Network, run: Run, form: str, settings: Settings, calibration: Floats) -> Path:
    """The original network's file, written where it is missing."""
    plain, path = (_file(run, "original", form, p) for p in (FLOAT32, settings.precision))
    if not plain.exists():
        EXPORTERS[form](network.module, network.input_shape, plain)
    if not path.exists():
        _quantize(plain, path, form, settings, calibration)
    return path


def _by_output(module: nn.Module, outputs: Floats, reference: Tensor) -> list[dict[str, Any]]:
    """Of a network with several outputs, the parity of each."""
    if not isinstance(module, PackedModule) or len(module.packing.output_shapes) < 2:
        return []
    sides = (torch.from_numpy(outputs), reference)
    pairs = zip(*(module.packing.outputs(side) for side in sides), strict=True)
    return [
        {
            "output": index, "shape": list(wanted.shape[1:]), "max_abs": float((found - wanted).abs().max()),
            "largest": float(wanted.abs().max()),
        }
        for index, (found, wanted) in enumerate(pairs)
    ]  # fmt: skip


def _device(settings: Settings, form: str, progress: Progress) -> Device | None:
    """None where the device has no runtime for a format; the other format may still be measured."""
    try:
        return open_device(settings, RUNTIMES[form], progress)
    except (MissingDependency, InvalidInput):
        if RUNTIMES[form] == chosen_runtime(settings):
            raise
        return None
    except (AmbiguousDevice, DeviceUnauthorized):
        raise
    except DeviceUnavailable as error:  # another device would not show that the run's budget is met
        error.next_step = f"attach the device of the run, {settings.device}; or pass --offline to export without it"
        raise
