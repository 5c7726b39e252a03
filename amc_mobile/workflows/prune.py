"""The two commands for the hurried: what a network offers to pruning, and all steps from profile to report in one."""

from __future__ import annotations

import logging
import shlex
import shutil
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from amc_mobile.channels.structure import CostModel, KeptGroup
from amc_mobile.data.images import ImageSet
from amc_mobile.export.metadata import DESCRIPTIONS, MODEL_JSON
from amc_mobile.formats import FORMATS, TFLITE, Format
from amc_mobile.latency.gate import STATUS_OF
from amc_mobile.models.loading import OBJECTS
from amc_mobile.models.task import logits
from amc_mobile.models.training import Epochs
from amc_mobile.report.tables import count, percent
from amc_mobile.store import to_document
from amc_mobile.user_file import names_a_function
from amc_mobile.workflows.devices import DeviceList, chosen_runtime, device_of, list_devices
from amc_mobile.workflows.export import ExportResult, takes_a_picture
from amc_mobile.workflows.network import Network, load_network, require_trained, resolved_checkpoint, untrained_error
from amc_mobile.workflows.plans import Preparations
from amc_mobile.workflows.profile import profile_device
from amc_mobile.workflows.runs import ExportRecord, Run
from amc_mobile.workflows.search import search_plan
from amc_mobile.workflows.search_config import SearchConfig
from amc_mobile.workflows.workspace import WHOLE_JOB, Progress, Settings, Workspace

DECODERS = 4  # threads: a check looks at few images of a folder
LONGEST_EVALUATION_S = 4.0  # of a check, which answers in about ten seconds
CHECKED_AT_ONCE = 64  # images


@dataclass(frozen=True)
class Group:
    """Channels that can be cut. `kind`: "residual", "depthwise" or ""."""

    name: str
    channels: int
    kind: str


@dataclass(frozen=True)
class Exporter:
    """A format that files may be written in. `packages`: name -> version; `next`: what to install, else empty."""

    format: str
    is_installed: bool
    packages: Mapping[str, str]
    next: str


@dataclass(frozen=True)
class CheckResult:
    """What a network offers to pruning. `ok`: it can begin.

    `input_shape`: (N, C, H, W). `mean`, `std`: per channel, of pixel values in 0..1, taken from `normalisation`.
    `accuracy`: in [0, 1] on `images` of the `test_images`; None without data. `macs`: of one image.
    """

    ok: bool
    model: str
    weights: str
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    normalisation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    macs: int
    parameters: int
    groups: tuple[Group, ...]
    kept_groups: tuple[KeptGroup, ...]
    metric: str
    accuracy: float | None
    images: int
    test_images: int
    exporters: tuple[Exporter, ...]
    devices: DeviceList
    warnings: tuple[str, ...]
    next: str

    def document(self) -> dict[str, Any]:
        plain = {name: to_document(value) for name, value in vars(self).items() if name != "devices"}
        return {**plain, "devices": self.devices.document()}

    def text(self) -> str:
        height_width = " x ".join(map(str, self.input_shape[2:]))
        channels = sum(group.channels for group in self.groups)
        rows = [
            ("input", f"{self.input_shape[1]} x {height_width} (channels x height x width)"),
            ("normalised", self._normalised()),
            ("output", f"{len(self.classes)} classes: {', '.join(self.classes)}" if self.classes else "not known"),
            ("weights", self.weights),
            ("cost", f"{count(self.macs)} MACs, {count(self.parameters)} parameters"),
            ("accuracy", self._accuracy()),
            (
                "pruned",
                f"{channels:,} channels in {len(self.groups)} groups: {', '.join(map(_group_text, self.groups))}",
            ),
            *(("kept whole", text) for text in self._kept()),
            *(("exporter", _exporter_text(exporter)) for exporter in self.exporters),
            *(("device", text) for text in _device_texts(self.devices)),
            *(("warning", text) for text in self.warnings),
        ]
        lines, before = [self.model], ""
        for name, text in rows:
            label = name if name != before else ""
            lines.append(textwrap.fill(f"  {label:<12}{text}", 110, subsequent_indent=" " * 14, max_lines=6))
            before = name
        return "\n".join([*lines, "", f"next: {self.next}"])

    def _normalised(self) -> str:
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"(pixel / 255 - mean) / std, mean {mean}, std {std}: {self.normalisation}" if mean else "no images"

    def _accuracy(self) -> str:
        if self.accuracy is None:
            return "not measured: no --data"
        some = "" if self.images == self.test_images else f" of {self.test_images:,}"
        return f"{self.metric} {percent(self.accuracy)} on {self.images:,}{some} test images"

    def _kept(self) -> list[str]:
        reasons: dict[str, list[str]] = {}
        for group in self.kept_groups:
            reasons.setdefault(group.reason, []).append(f"{group.name} ({group.channels})")
        return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _group_text(group: Group) -> str:
    return f"{group.name} {group.channels}" + (f" ({group.kind})" if group.kind == "residual" else "")


def _exporter_text(exporter: Exporter) -> str:
    if not exporter.is_installed:
        return f".{exporter.format}: not installed; {exporter.next}"
    return f".{exporter.format}: ready, " + ", ".join(f"{name} {number}" for name, number in exporter.packages.items())


def _device_texts(devices: DeviceList) -> list[str]:
    texts = [f"--device host: ready, {host.runtime} {host.runtime_version}, {host.soc}" for host in devices.hosts]
    for phone in devices.phones:
        name = f"--device {phone.details.profiles[0]}" if phone.details and phone.details.profiles else "phone"
        model = f" ({phone.details.model})" if phone.details else ""
        state = f"not ready: {phone.problems[0].what}" if phone.problems else "ready"
        texts.append(f"{name} --serial {phone.serial}{model}: {state}")
    if not devices.phones:
        why = devices.problems[0].what if devices.problems else "adb sees no phone"
        texts.append(f"no phone: {why}; see `amc-mobile doctor`")
    return texts


def check_network(space: Workspace, settings: Settings) -> CheckResult:
    """Loads the network and its images and says what can be pruned, in about ten seconds; measures and changes nothing.

    The accuracy is taken on as many test images as a few seconds allow. Raises InvalidInput for files that do not fit
    and UnsupportedLayer for networks that cannot be traced.
    """
    with _collected_warnings() as warnings:
        network = load_network(space, replace(settings, workers=settings.workers or DECODERS))
        dataset, groups = network.dataset, network.groups
        accuracy, images, untrained = None, 0, None
        if dataset is not None:
            some, outputs = _outputs(network, dataset.test)
            accuracy, images = network.task.accuracy(outputs, some.labels), len(some)
            untrained = untrained_error(network, outputs, some.labels)
    if untrained is not None:
        warnings.append(f"{untrained.message}; {untrained.next_step}")
    cost = CostModel(network.module, groups)
    exporters = tuple(_exporter(form) for form in FORMATS.values())
    if not groups.groups:
        warnings.append("no channels can be pruned: all of them are kept whole")
    devices = list_devices()
    return CheckResult(
        ok=bool(groups.groups) and untrained is None and any(exporter.is_installed for exporter in exporters),
        model=settings.model,
        weights=_weights_text(space, settings),
        input_shape=network.input_shape,
        classes=dataset.classes if dataset is not None else (),
        normalisation="from the network" if network.loaded.normalisation else "from the data set",
        mean=_floats(dataset.test.mean if dataset is not None else None),
        std=_floats(dataset.test.std if dataset is not None else None),
        macs=int(cost.macs(groups.sizes)),
        parameters=int(cost.parameters(groups.sizes)),
        groups=tuple(Group(group.name, group.channels, groups.kinds[group.name]) for group in groups.groups),
        kept_groups=groups.kept_groups,
        metric=network.task.metric,
        accuracy=accuracy,
        images=images,
        test_images=len(dataset.test) if dataset is not None else 0,
        exporters=exporters,
        devices=devices,
        warnings=tuple(warnings),
        next=_prune_command(settings, devices),
    )


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """What the package warns of meanwhile, in place of stderr."""
    texts: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage().removeprefix("warning: "))

    logger, collector = logging.getLogger("amc_mobile"), Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield texts
    finally:
        logger.removeHandler(collector)


def _outputs(network: Network, test: ImageSet) -> tuple[ImageSet, torch.Tensor]:
    """As many test images, in random order, as LONGEST_EVALUATION_S allows, and the network's outputs on them."""
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    outputs: list[torch.Tensor] = []
    started, done = time.monotonic(), 0
    for start in range(0, len(test), CHECKED_AT_ONCE):
        batch = test.subset(order[start : start + CHECKED_AT_ONCE])
        outputs.append(logits(network.module, batch))
        done += len(batch)
        if time.monotonic() - started > LONGEST_EVALUATION_S:
            break
    return test.subset(order[:done]), torch.cat(outputs)


def _floats(values: torch.Tensor | None) -> tuple[float, ...]:
    return () if values is None else tuple(values.tolist())


def _exporter(form: Format) -> Exporter:
    versions = {}
    for package in form.exporter_packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            return Exporter(form.name, False, versions, form.missing(package).next_step)
    return Exporter(form.name, True, versions, "")


def _weights_text(space: Workspace, settings: Settings) -> str:
    spec = settings.model
    checkpoint = resolved_checkpoint(space, spec, settings.checkpoint)
    if checkpoint is not None:
        return str(checkpoint) + (", of `amc-mobile train`" if checkpoint == space.trained_checkpoint else "")
    if spec in OBJECTS or names_a_function(spec):
        return "as the network was given: no --checkpoint"
    library = spec.partition(":")[0]
    return f"those that {library} publishes" if library != spec else f"random, by seed {settings.seed}: no --checkpoint"


def _prune_command(settings: Settings, devices: DeviceList) -> str:
    """`prune` with the flags that the check was given, on a phone that is ready."""
    ready = [p.details.profiles[0] for p in devices.phones if not p.problems and p.details and p.details.profiles]
    flags = {
        "--checkpoint": settings.checkpoint, "--data": settings.data or "DATA",
        "--width": f"{settings.width_multiplier:g}" if settings.width_multiplier != 1 else "",
        "--input-size": str(settings.input_size or ""), "--accuracy": settings.accuracy, "--loss": settings.loss,
        "--device": ready[0] if ready else "", "--latency-ratio": "0.5",
    }  # fmt: skip
    given = [word for flag, value in flags.items() if value for word in (flag, value)]
    return shlex.join(["amc-mobile", "prune", settings.model, *given])


# Per step, which share of it each stage of its progress takes, from where to where.
STAGES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "profile": {"export for": (0, 0.15), "measure kernels": (0.15, 0.6), "measure whole models": (0.6, 1)},
    "search": {"prepare": (0, 0.1), "measure the original": (0.1, 0.15), "search": (0.15, 0.95), "refit": (0.95, 1)},
    "finetune": {"fine-tune": (0, 1)},
    "export": {"export": (0, 1)},
    "report": {},
}
# Rough durations, until the first steps show how fast this computer is.
PROFILE_S, QUICK_PROFILE_S, SEARCH_S, EPISODE_S, EXPORT_S, REPORT_S = 90.0, 25.0, 5.0, 0.06, 20.0, 2.0
TRAINED_MACS_PER_S = 1e9
GUESSED_EPOCHS = 20  # of "auto"
LOWEST_SCALE, HIGHEST_SCALE = 0.3, 30.0  # of what is left; a step that had nothing left to do says little
TOLD_SHARE = 0.1  # of a step, after which its own speed says how long it takes


class WholeJob:
    """Progress of all steps as one: reports the seconds that have passed, of those and the ones that are left.

    `guesses_s`: the steps in order, with a rough duration; scaled by the durations of those that are finished.
    """

    def __init__(self, progress: Progress, guesses_s: Mapping[str, float]) -> None:
        self._progress, self._guesses_s = progress, guesses_s
        self._started = self._step_began = time.monotonic()
        self._step = ""
        self._finished_s: dict[str, float] = {}

    def begin(self, step: str) -> Progress:
        """The progress of a step; the one before it is finished."""
        now = time.monotonic()
        if self._step:
            self._finished_s[self._step] = now - self._step_began
        self._step, self._step_began = step, now
        share = 0.0

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            nonlocal share
            ends = next((ends for name, ends in STAGES[step].items() if stage.startswith(name)), None)
            if ends is not None and total:
                share = max(share, ends[0] + (ends[1] - ends[0]) * done / total)
            passed_s = time.monotonic() - self._started
            counted = f" {done}/{total}" if total > 1 else ""
            text = f"{list(self._guesses_s).index(step) + 1}/{len(self._guesses_s)} {step}"
            text += (f": {stage}" if stage != step else "") + counted + (f", {note}" if note else "")
            self._progress(WHOLE_JOB, round(passed_s), round(passed_s + self._left_s(share)), text)

        report(step, 0, 0)
        return report

    def _left_s(self, share: float) -> float:
        """`share`: of the present step, which is done."""
        steps, guess_s, took_s = list(self._guesses_s), self._guesses_s[self._step], time.monotonic() - self._step_began
        guessed_s = share * guess_s + sum(self._guesses_s[step] for step in self._finished_s)
        ratio = (took_s + sum(self._finished_s.values())) / guessed_s if guessed_s else 1.0
        scale = min(max(ratio, LOWEST_SCALE), HIGHEST_SCALE)
        later_s = scale * sum(self._guesses_s[step] for step in steps[steps.index(self._step) + 1 :])
        return later_s + (took_s * (1 / share - 1) if share > TOLD_SHARE else scale * guess_s * (1 - share))


@dataclass(frozen=True)
class PruneResult:
    """What the whole job gave. `folder`: with `files`, ready to be shipped; `passed`: as of the export."""

    run: str
    passed: bool | None
    verdict: str
    folder: str
    files: tuple[str, ...]
    export: ExportResult

    def document(self) -> dict[str, Any]:
        plain = {name: to_document(value) for name, value in vars(self).items() if name != "export"}
        return {**plain, "export": self.export.document()}

    def text(self) -> str:
        return "\n".join([f"run {self.run}", *(f"  {Path(self.folder) / file}" for file in self.files), self.verdict])

    def raise_if_not_passed(self) -> None:
        """Raises as the export's: BudgetNotMet or AccuracyNotKept (exit 3), BudgetNotVerified (exit 4)."""
        self.export.raise_if_not_passed()


def prune_network(
    space: Workspace,
    settings: Settings,
    config: SearchConfig,
    *,
    epochs: Epochs,
    output: Path,
    progress: Progress,
    network: Network | None = None,
    quick: bool = False,
    run: str | None = None,
    untrained: bool = False,
) -> PruneResult:
    """Profiles where the budget is a latency, searches, fine-tunes, exports every installed format and reports.

    `output`: gets the files to ship; those of an earlier run there are replaced. `network`: that of the settings, where
    it is open. What is done already is not done again, so that a job that was stopped goes on. Raises as the single
    steps do; what can be refused at once is.
    """
    settings.required("data")
    formats = _formats(settings)
    network = load_network(space, settings, network)
    if not untrained and config.reward != "macs":
        data = network.split(calibration=config.calibration_images, reward=config.reward_images, seed=settings.seed)
        require_trained(network, data.reward)
    job = WholeJob(progress, _guesses_s(network, config, epochs, len(formats), quick=quick))
    if config.unit == "ms":
        profile_device(space, settings, network=network, quick=quick, progress=job.begin("profile"))
    else:  # the export measures there
        device_of(settings, chosen_runtime(settings), progress)
    found = search_plan(
        space,
        settings,
        config,
        run=run,
        progress=job.begin("search"),
        prepared=Preparations(network),
        untrained=untrained,
    )
    found.raise_if_accuracy_not_kept()
    folder = Run(space.runs / found.run)
    tuned = folder.finetuned()
    if epochs and not (tuned and (tuned.ends_itself if epochs == "auto" else tuned.epochs == epochs)):
        folder.finetune(epochs=epochs, workers=settings.workers or None, progress=job.begin("finetune"))
    export = _finished_export(folder, settings, formats) or folder.export(
        *formats, serial=settings.serial, waive=settings.waived, clock_mode=settings.clock_mode,
        kotlin=takes_a_picture(network), progress=job.begin("export"),
    )  # fmt: skip
    job.begin("report")
    pages = [path for path in folder.report().paths if path.suffix == ".html"]
    described = [path for name in DESCRIPTIONS if (path := folder.folder / name).is_file()]
    files = _ship([*(Path(file.path) for file in export.record.files), *described, *pages], output)
    verdict = _verdict(export, found.search.test_top1["original"])
    return PruneResult(found.run, export.passed, verdict, str(output), files, export)


def _formats(settings: Settings) -> list[str]:
    """Those that can be written in the settings' precision. Raises MissingDependency where none is installed."""
    installed = [
        form.name
        for form in FORMATS.values()
        if settings.precision in form.precisions and form.can_export and form.is_installed
    ]
    if not installed:
        raise TFLITE.missing(TFLITE.exporter_packages[-1])
    return installed


def _guesses_s(
    network: Network, config: SearchConfig, epochs: Epochs, formats: int, *, quick: bool
) -> dict[str, float]:
    """The steps to be made, with rough durations."""
    macs = CostModel(network.module, network.groups).macs(network.groups.sizes)
    passes = GUESSED_EPOCHS if epochs == "auto" else epochs
    images = len(network.dataset.train) if network.dataset is not None else 0
    return {
        **({"profile": QUICK_PROFILE_S if quick else PROFILE_S} if config.unit == "ms" else {}),
        "search": SEARCH_S + EPISODE_S * config.episodes,
        **({"finetune": passes * images * float(macs) / TRAINED_MACS_PER_S} if passes else {}),
        "export": EXPORT_S * formats,
        "report": REPORT_S,
    }


def _finished_export(run: Run, settings: Settings, formats: Sequence[str]) -> ExportResult | None:
    """The run's export, where it passed with the present weights and its files are there."""
    record = run.find(ExportRecord)
    if record is None or run.is_outdated(record) or not record.gate.passed or record.precision != settings.precision:
        return None
    is_whole = all(path.is_file() for path in (*(Path(f.path) for f in record.files), run.folder / MODEL_JSON))
    return (
        ExportResult(run.folder.name, record) if is_whole and {f.format for f in record.files} >= {*formats} else None
    )


def _ship(paths: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """Copies the files; those of the same kind that an earlier job left there go."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in DESCRIPTIONS:
        (folder / name).unlink(missing_ok=True)
    for form in FORMATS.values():
        for stem in ("model", *(f"model_{precision}" for precision in form.precisions)):
            (folder / f"{stem}{form.suffix}").unlink(missing_ok=True)
    for path in paths:
        shutil.copyfile(path, folder / path.name)
    return tuple(path.name for path in paths)


def _verdict(export: ExportResult, original_top1: float) -> str:
    record = export.record
    file = next((file for file in record.files if file.runtime == record.runtime), record.files[0])
    latency = f"p50 {file.pair.before.p50_ms:.3f} -> {file.pair.after.p50_ms:.3f} ms, " if file.pair else ""
    accuracy = f"{record.metric} {percent(original_top1)} -> {percent(file.test_top1)}"
    return f"{STATUS_OF[export.passed]}: {latency}{accuracy}; {record.gate.text}"
