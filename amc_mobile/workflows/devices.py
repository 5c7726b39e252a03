"""What can measure: this computer, attached phones, devices that only a table remembers; and the phones' libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from amc_mobile.device import phone_state
from amc_mobile.device.accelerator import CPU
from amc_mobile.device.adb import AdbPhone, AdbServer, AttachedPhone, remedy
from amc_mobile.device.benchmark_model import BenchmarkModelDevice
from amc_mobile.device.conditions import Conditions, unit_of
from amc_mobile.device.device import Device, Neighbours
from amc_mobile.device.host import HostDevice, HostNeighbours, installed_runtimes, tiny_model
from amc_mobile.device.libraries import (
    GLIBC,
    RuntimeLibrary,
    add_library,
    choose_library,
    list_libraries,
)
from amc_mobile.device.phone import PhoneDevice, select_phone
from amc_mobile.device.phone_runner import remove_all
from amc_mobile.device.phone_state import (
    PhoneFacts,
    give_back_left_over,
    noted_caps,
    phone_lock,
    read_facts,
    read_neighbours,
    waiting_stage,
)
from amc_mobile.device.profiles import (
    HOST,
    DeviceProfile,
    load_profiles,
    matching_profiles,
    most_special,
    profile_named,
    profiles_folder,
    runtimes_folder,
)
from amc_mobile.device.runner import runner_program
from amc_mobile.errors import AmcMobileError, DeviceError, InvalidConfig, InvalidInput
from amc_mobile.formats import BENCHMARK_MODEL, BY_RUNTIME, MAVEN, ONNX, PHONE_RUNTIMES, TFLITE
from amc_mobile.latency.table import LatencyTable, RecordedDevice
from amc_mobile.report.tables import render_rows
from amc_mobile.store import to_document
from amc_mobile.workflows.workspace import Progress, Settings, Workspace, check_settings, silent


def profile_of(device: str) -> DeviceProfile:
    """Raises InvalidConfig for a device that no profile describes."""
    return profile_named(load_profiles(profiles_folder()), device)


def chosen_runtime(settings: Settings) -> str:
    """The runtime asked for, as the format of its files names it; else the device's own.

    That is on this computer TFLite where installed. Raises MissingDependency for a runtime that this computer is to use
    and does not have, InvalidConfig for one that only phones have.
    """
    if settings.offline and settings.runtime:
        return settings.runtime
    profile = profile_of(settings.device)
    if not profile.is_host:
        return PHONE_RUNTIMES[settings.runtime or profile.runtime].format.runtime
    if settings.runtime == BENCHMARK_MODEL:
        raise InvalidConfig(
            f"{BENCHMARK_MODEL} measures on phones only",
            next_step=f"pass --runtime {TFLITE.runtime}, or a phone as --device",
        )
    installed = installed_runtimes()
    runtime = settings.runtime or (TFLITE if TFLITE.runtime in installed else ONNX).runtime
    if runtime not in installed:
        raise BY_RUNTIME[runtime].missing()
    return runtime


def device_of(settings: Settings, runtime: str, progress: Progress) -> Device:
    """Raises DeviceUnavailable saying what adb sees, InvalidInput when the phone lacks a library for `runtime`."""
    profile = profile_of(settings.device)

    def on_neighbours(neighbours: Neighbours, waited_s: float) -> None:
        progress("wait for other programs to end", int(waited_s), int(profile.quiet_wait_s), neighbours.text())

    if profile.is_host:
        return HostDevice(
            runtime,
            settings.threads,
            patience_s=profile.quiet_wait_s,
            waived=settings.waived,
            on_wait=on_neighbours,
            accelerator=settings.accelerator,
        )
    if settings.accelerator != CPU:
        raise InvalidConfig(
            f"phones are measured on their CPU only, not on their {settings.accelerator.upper()}",
            next_step="leave --accelerator out; on this computer, --device host, it can be gpu",
        )

    def on_silence(what: str, waited_s: float, limit_s: float) -> None:
        progress("wait for the phone", int(waited_s), int(limit_s), what)

    server = AdbServer(on_wait=on_silence)
    profiles = load_profiles(profiles_folder())
    adb = select_phone(profile, profiles, serial=settings.serial or None, server=server)
    give_back_left_over(adb)
    facts = read_facts(adb)
    asked, profile = profile, most_special(profile, profiles, facts.properties)
    if profile is not asked:
        progress(f"device profile {profile.name}, which fits this {facts.model} better than {asked.name}", 1, 1)
    by_program = settings.runtime == BENCHMARK_MODEL and runtime == TFLITE.runtime
    library = choose_library(list_libraries(runtimes_folder()), BENCHMARK_MODEL if by_program else runtime, facts.abis)

    def on_wait(problems: Mapping[str, str], waited_s: float) -> None:
        progress(waiting_stage(problems), int(waited_s), int(profile.cooldown_s), "; ".join(problems.values()))

    is_program = library.runtime == BENCHMARK_MODEL
    kind = BenchmarkModelDevice if is_program else PhoneDevice
    return kind(
        adb,
        profile,
        library,
        library.path if is_program else runner_program(library.abi),
        threads=settings.threads,
        mode=settings.clock_mode,
        waived=settings.waived,
        on_wait=on_wait,
        on_neighbours=on_neighbours,
    )


@dataclass(frozen=True)
class OpenedDevice:
    """A device that measures, with its runtime, threads and state. `settings`: those of its fields that speak of it."""

    settings: Settings

    def conditions(self) -> Conditions:
        """Under what its measurements are made: phone, processor, system, runtime and its version, threads, cores."""
        return device_of(self.settings, chosen_runtime(self.settings), silent).conditions()


def open_device(
    name: str = HOST,
    *,
    serial: str | Sequence[str] = "",
    runtime: str = "",
    threads: int = 1,
    accelerator: str = CPU,
    waive: Sequence[str] = (),
    clock_mode: str = "unlocked",
    offline: bool = False,
    conditions: Sequence[str] = (),
    progress: Progress = silent,
) -> OpenedDevice:
    """The device to measure on: "host", this computer, or a phone by its profile, e.g. "pixel".

    `serial`: which phone, where several fit; a list of phones of one model that share the work of a profile.
    `runtime`: "tflite", "onnxruntime", or "benchmark_model" for averages on phones; empty: TFLite where installed.
    `accelerator`: "cpu", or "gpu" on this computer with TFLite.
    `waive`: problems that do not matter, e.g. "HOT". `clock_mode`: "unlocked" or "fixed_performance". `offline`: the
    device is never asked: its latency table predicts, and `conditions` says which one of several, by its first digits.

    Raises DeviceUnavailable saying what adb sees, InvalidConfig for an unknown name or runtime, MissingDependency.

        device = amc.open_device("pixel", threads=4)
        device.conditions().soc
    """
    serials = (serial,) if isinstance(serial, str) else serial
    settings = Settings(
        device=name, serial=",".join(serials), runtime=runtime, threads=threads, accelerator=accelerator,
        waive=",".join(waive), clock_mode=clock_mode, offline=offline, conditions=",".join(conditions),
    )  # fmt: skip
    check_settings(settings)
    if not offline:
        first = replace(settings, serial=serials[0] if serials else "")
        device_of(first, chosen_runtime(first), progress)
    return OpenedDevice(settings)


SHOWN_KEY = 8  # digits of a key that tell conditions apart


def recorded(space: Workspace, settings: Settings) -> tuple[RecordedDevice, Settings]:
    """The device that the table remembers, and the settings with its runtime and threads.

    Raises InvalidInput where the table has nothing of `settings.device`, or several conditions that fit.
    """
    location = space.table_location(settings)
    if location == space.table_path and not space.table_path.exists():
        raise InvalidInput(
            f"no latency table in {space.folder}, which --offline needs",
            next_step="import one with `amc-mobile table import`, or attach the device and run `amc-mobile profile`",
        )
    with LatencyTable(location) as table:
        conditions = choose_conditions(table.conditions(), settings)
    # Where a table does not say its runtime, any export gives the kernels' shapes.
    exporter = (TFLITE if TFLITE.can_export else ONNX).runtime
    runtime = conditions.runtime if conditions.runtime in BY_RUNTIME else settings.runtime or exporter
    return RecordedDevice(conditions), replace(settings, runtime=runtime, conditions=conditions.key, offline=True)


def not_measured(device: str) -> str:
    """The warning beside every latency that is predicted by the table of `device` alone."""
    return f"PREDICTED, NOT MEASURED: by the table of {device}, without the device"


def choose_conditions(in_table: Sequence[Conditions], settings: Settings) -> Conditions:
    """The conditions of the table that the settings mean. Raises InvalidInput where none or several fit."""
    profile = load_profiles(profiles_folder()).get(settings.device)
    of_device = [c for c in in_table if is_of(c, settings.device, profile)]
    if not of_device:
        raise InvalidInput(
            f"the table holds nothing measured on {settings.device}" + _listed(in_table),
            next_step="pass the --device that it was measured on, or import another table",
        )
    keys = [key for key in settings.conditions.replace(" ", "").split(",") if key]
    fitting = [c for c in of_device if any(c.key.startswith(key) for key in keys)]
    if not fitting:
        # What another tool measured may not say its runtime.
        runtimes = (settings.runtime, "unknown") if settings.runtime else (*BY_RUNTIME, "unknown")
        fitting = [
            c
            for c in of_device
            if c.threads == settings.threads and c.runtime in runtimes and is_on(c, settings.accelerator)
        ]
    if not fitting:
        asked = f"{settings.runtime or 'any runtime'}, {settings.threads} thread(s), {settings.accelerator}"
        raise InvalidInput(
            f"nothing of {settings.device} was measured with {asked}" + _listed(of_device),
            next_step="pass the --runtime and --threads of one of these",
        )
    units = {unit_of(serial) for serial in settings.serials}
    if len(fitting) > 1 and not keys:
        # Of several phones of one model, the one that was worked with.
        fitting = [c for c in fitting if c.unit in units] or fitting
    if len(fitting) > 1:
        raise InvalidInput(
            f"{len(fitting)} conditions of the table fit {settings.device}" + _listed(fitting),
            next_step=f"choose one: --conditions {fitting[-1].key[:SHOWN_KEY]}",
        )
    return fitting[0]


def is_on(conditions: Conditions, accelerator: str) -> bool:
    return (conditions.accelerator or CPU).partition(" ")[0] == accelerator


def is_of(conditions: Conditions, device: str, profile: DeviceProfile | None) -> bool:
    """Whether something was measured on `device`: the name that the table gives it, or a profile that fits."""
    if conditions.device == device:
        return True
    return profile is not None and not profile.is_host and profile.fits(_properties(conditions))


def _properties(conditions: Conditions) -> dict[str, str]:
    """What conditions keep of a phone's properties."""
    manufacturer, _, model = conditions.device.partition(" ")
    # Behind the version of Android: BRAND/PRODUCT/DEVICE:VERSION/...
    fingerprint = conditions.os.rpartition(" ")[2].split("/")
    properties = {"ro.product.manufacturer": manufacturer, "ro.product.model": model, "ro.soc.model": conditions.soc}
    if len(fingerprint) > 2:
        properties |= {"ro.product.brand": fingerprint[0], "ro.product.device": fingerprint[2].partition(":")[0]}
    return properties


def _listed(every: Sequence[Conditions]) -> str:
    lines = [
        f"\n  {c.key[:SHOWN_KEY]}  {c.device} ({c.soc}), {c.os}, {c.runtime} {c.runtime_version}, "
        f"{c.threads} thread(s){c.accelerator and ', ' + c.accelerator}, cores {c.cores}, "
        f"clocks {c.clock_mode}{', unit ' + c.unit if c.unit else ''}"
        for c in every
    ]
    return ":" + "".join(lines) if lines else ""


@dataclass(frozen=True)
class RuntimeList:
    libraries: tuple[RuntimeLibrary, ...]

    def document(self) -> dict[str, Any]:
        return {"runtimes": [{**asdict(library), "path": str(library.path)} for library in self.libraries]}

    def text(self) -> str:
        if not self.libraries:
            return (
                f"no runtime library yet; download an AAR from Maven ({MAVEN}), then `amc-mobile runtime add FILE.aar`"
            )
        rows = [(x.runtime, x.version, x.abi, x.libc, x.sha256[:16], str(x.path)) for x in self.libraries]
        table = render_rows(["runtime", "version", "processor", "C library", "sha256", "file"], rows)
        foreign = any(library.libc == GLIBC for library in self.libraries)
        return table + ("\nLibraries for glibc run on Linux computers, not on Android." if foreign else "")


def add_runtime(file: Path, *, version: str | None) -> RuntimeList:
    """Adds the libraries in a file. Raises InvalidInput, InvalidConfig or CorruptFile."""
    return RuntimeList(tuple(add_library(file, runtimes_folder(), version=version)))


def list_runtimes() -> RuntimeList:
    return RuntimeList(tuple(list_libraries(runtimes_folder())))


NO_ADB = "NO_ADB"
NOT_READY = "NOT_READY"
NOT_CLEANED = "NOT_CLEANED"
NO_ANSWER = "NO_ANSWER"
NO_PROFILE = "NO_PROFILE"
NO_RUNTIME = "NO_RUNTIME"
NO_RUNNER = "NO_RUNNER"
FOREIGN_RUNTIME = "FOREIGN_RUNTIME"
TRIAL_FAILED = "TRIAL_FAILED"
LITTLE_SPACE = "LITTLE_SPACE"
NO_CLUSTERS = "NO_CLUSTERS"
SPACE_WANTED_BYTES = 1 << 30
PLUG_IN = "plug a phone in, switch on USB debugging in its developer options and accept its dialog"


@dataclass(frozen=True)
class Problem:
    """What keeps a device from measuring, and what to do about it."""

    name: str
    what: str
    remedy: str

    @classmethod
    def of(cls, name: str, error: AmcMobileError) -> Problem:
        return cls(name, error.message, error.next_step)

    def line(self, owner: str = "") -> str:
        return f"{owner}{self.what} [{self.name}]\n  next: {self.remedy}"


@dataclass(frozen=True)
class PhoneDetails:
    """What a phone that answers says of itself. `profiles`: those that fit it; `runtimes`: libraries added for it."""

    model: str
    soc: str
    android: str
    sdk: int
    abis: tuple[str, ...]
    clusters: str
    governors: tuple[str, ...]
    celsius: float | None
    battery_percent: float
    free_bytes: int
    neighbours: Neighbours | None
    profiles: tuple[str, ...]
    runtimes: tuple[str, ...]


@dataclass(frozen=True)
class ListedPhone:
    """A phone that adb sees. `trials`: by library, whether it ran, where that was tried."""

    serial: str
    state: str
    problems: tuple[Problem, ...] = ()
    details: PhoneDetails | None = None
    trials: Mapping[str, str] | None = None
    removed_bytes: int | None = None

    def document(self) -> dict[str, Any]:
        document = {"serial": self.serial, "state": self.state, "problems": to_document(self.problems)}
        document |= to_document(self.details) if self.details is not None else {}
        later = {"trials": self.trials, "removed_bytes": self.removed_bytes}
        return document | {key: to_document(value) for key, value in later.items() if value is not None}

    def row(self) -> list[str]:
        d = self.details
        if d is None:
            return [self.serial, self.state, *[""] * 8]
        celsius = "" if d.celsius is None else f"{d.celsius:.1f}"
        battery, free = f"{d.battery_percent:.0f} %", f"{d.free_bytes / 1e9:.1f} GB"
        return [
            self.serial, self.state, d.model, d.soc, d.android, d.clusters, celsius, battery, free,
            ", ".join(d.profiles),
        ]  # fmt: skip


@dataclass(frozen=True)
class DeviceList:
    """What can measure. `hosts`: this computer under each runtime that is installed."""

    hosts: tuple[Conditions, ...]
    phones: tuple[ListedPhone, ...]
    problems: tuple[Problem, ...]

    def document(self) -> dict[str, Any]:
        phones = [phone.document() for phone in self.phones]
        return {"devices": to_document(self.hosts), "phones": phones, "problems": to_document(self.problems)}

    def text(self) -> str:
        rows = [(c.device, c.soc, c.os, f"{c.runtime} {c.runtime_version}", c.cores) for c in self.hosts]
        parts = [render_rows(["device", "processor", "system", "runtime", "cores"], rows)]
        if self.phones:
            headers = ["phone", "state", "model", "chip", "Android", "cores", "C", "battery", "free", "--device"]
            parts.append(render_rows(headers, [phone.row() for phone in self.phones]))
        parts += [problem.line() for problem in self.problems]
        parts += [problem.line(f"{phone.serial}: ") for phone in self.phones for problem in phone.problems]
        return "\n\n".join(parts)


def list_devices(runtime: str = "", *, try_out: bool = False, clean: bool = False) -> DeviceList:
    """This computer under each runtime that is installed, and every phone that adb sees, with its problems.

    `runtime`: that has to be there; else the profile's. `try_out`: runs a tiny network with each library. `clean`:
    removes amc-mobile's files from the phones: `removed_bytes` of each.
    """
    hosts = tuple(HostDevice(name).conditions() for name in installed_runtimes())
    try:
        server = AdbServer()
        attached = server.settled_phones()
    except DeviceError as error:
        # Without adb this computer can still measure.
        return DeviceList(hosts, (), (Problem.of(NO_ADB, error),))
    profiles = load_profiles(profiles_folder())
    libraries, problems = list[RuntimeLibrary](), list[Problem]()
    try:
        libraries = list_libraries(runtimes_folder())
    except AmcMobileError as error:
        problems.append(Problem.of(NO_RUNTIME, error))
    with ThreadPoolExecutor(max_workers=8) as pool:  # a phone that hangs must not keep the others waiting
        phones = tuple(
            pool.map(lambda phone: _phone(server, phone, profiles, libraries, runtime, try_out, clean), attached)
        )
    return DeviceList(hosts, phones, tuple(problems))


def _phone(
    server: AdbServer,
    attached: AttachedPhone,
    profiles: Mapping[str, DeviceProfile],
    libraries: Sequence[RuntimeLibrary],
    runtime: str,
    try_out: bool,
    clean: bool,
) -> ListedPhone:
    phone = ListedPhone(attached.serial, attached.state)
    if not attached.is_ready:
        problem = Problem(NOT_READY, f"adb says {attached.state}", remedy(attached.state))
        return replace(phone, problems=(problem,))
    try:
        adb = AdbPhone(server, attached)
        give_back_left_over(adb)
        if clean:
            phone = _cleaned(adb, phone)
        facts = read_facts(adb)
        neighbours = read_neighbours(adb)
    except DeviceError as error:
        return replace(phone, problems=(*phone.problems, Problem.of(NO_ANSWER, error)))
    fitting = matching_profiles(profiles, facts.properties)
    state = facts.state
    own_libraries = [library for library in libraries if library.abi in facts.abis]
    details = PhoneDetails(
        facts.model, facts.soc, facts.android, facts.sdk, tuple(facts.abis), facts.clusters,
        tuple(sorted({policy.governor for policy in state.policies})), state.celsius, state.battery.percent,
        facts.free_bytes, neighbours, tuple(profile.name for profile in fitting),
        tuple(library.label for library in own_libraries),
    )  # fmt: skip
    profile = fitting[0] if fitting else None
    problems = [*phone.problems, *_phone_problems(facts, profile, libraries, runtime), *_busy(neighbours)]
    trials = None
    if try_out and profile is not None:
        tried = {f"{each.label} ({each.path.name})": _trial(adb, profile, each) for each in own_libraries}
        trials = {label: problem.what if problem else "ran" for label, problem in tried.items()}
        problems += [problem for problem in tried.values() if problem]
    return replace(phone, problems=tuple(problems), details=details, trials=trials)


def _cleaned(adb: AdbPhone, phone: ListedPhone) -> ListedPhone:
    try:
        with phone_lock(adb.serial):
            return replace(phone, removed_bytes=remove_all(adb))
    except DeviceError as error:
        return replace(phone, problems=(*phone.problems, Problem.of(NOT_CLEANED, error)))


def _trial(adb: AdbPhone, profile: DeviceProfile, library: RuntimeLibrary) -> Problem | None:
    """The problem that keeps a library from running a tiny network on the phone, or None."""
    is_program = library.runtime == BENCHMARK_MODEL
    try:
        runner = library.path if is_program else runner_program(library.abi)
    except (DeviceError, InvalidConfig) as error:
        return Problem.of(NO_RUNNER, error)
    try:
        kind = BenchmarkModelDevice if is_program else PhoneDevice
        kind(adb, profile, library, runner).try_out(tiny_model(library.runtime))
    except DeviceError as error:
        what = f"{library.label} does not run on the phone: {error.message}"
        return Problem(TRIAL_FAILED, what, error.next_step or f"add another build or version of it: {MAVEN}")
    return None


def _busy(neighbours: Neighbours | None) -> list[Problem]:
    if neighbours is None or not neighbours.is_busy:
        return []
    return [Problem(phone_state.BUSY, neighbours.text(), phone_state.REMEDIES[phone_state.BUSY])]


def _phone_problems(
    facts: PhoneFacts, profile: DeviceProfile | None, libraries: Sequence[RuntimeLibrary], runtime: str
) -> list[Problem]:
    problems = []
    if profile is None:
        what = f"no profile fits {facts.model} with {'/'.join(facts.abis) or 'an unknown processor'}"
        problems.append(Problem(NO_PROFILE, what, f"write one: a TOML file in {profiles_folder()}"))
    else:
        cores = profile.cores_for(profile.threads, facts.state.policies)
        limits = phone_state.clock_limits(facts.state, cores, noted_caps(facts.serial))
        unfit = phone_state.problems(facts, facts.state, profile) | limits
        problems += [Problem(name, what, phone_state.REMEDIES[name]) for name, what in unfit.items()]
        try:
            library = choose_library(libraries, runtime or profile.runtime, facts.abis)
            if library.libc == GLIBC:
                what = f"{library.label} is built for Linux computers and does not load on Android"
                problems.append(Problem(FOREIGN_RUNTIME, what, f"add an AAR: {MAVEN}"))
            if library.runtime != BENCHMARK_MODEL:  # which is its own runner
                runner_program(library.abi)
        except InvalidInput as error:
            problems.append(Problem.of(NO_RUNTIME, error))
        except (DeviceError, InvalidConfig) as error:
            problems.append(Problem.of(NO_RUNNER, error))
    if facts.free_bytes < SPACE_WANTED_BYTES:
        what = f"{facts.free_bytes >> 20} MiB free, {SPACE_WANTED_BYTES >> 20} MiB are comfortable"
        problems.append(Problem(LITTLE_SPACE, what, "free some space on the phone"))
    if not facts.state.policies:
        what = "the phone hides its core clusters, so the fast cores are unknown"
        problems.append(Problem(NO_CLUSTERS, what, "name the cores in a profile of your own: cores = ..."))
    return problems


@dataclass(frozen=True)
class Diagnosis:
    """`ok`: whether measuring can begin. `neighbours`, `host_problems`: other programs on this computer."""

    ok: bool
    listed: DeviceList
    neighbours: Neighbours | None
    host_problems: tuple[Problem, ...]

    def document(self) -> dict[str, Any]:
        here = {"neighbours": to_document(self.neighbours), "problems": to_document(self.host_problems)}
        return {"ok": self.ok, **self.listed.document(), "this_computer": here}

    def text(self) -> str:
        verdict = "all is well" if self.ok else "what to correct is listed last"
        if self.ok and not self.listed.phones:
            verdict = "all is well for work on this computer (--device host); for a phone see above"
        here = [problem.line("this computer: ") for problem in self.host_problems]
        removed = [
            f"{phone.serial}: removed {phone.removed_bytes >> 20} MiB of amc-mobile's files"
            for phone in self.listed.phones
            if phone.removed_bytes is not None
        ]
        return "\n\n".join([self.listed.text(), *here, *removed, verdict])


def doctor(space: Workspace, runtime: str | None = None, *, clean: bool = False) -> Diagnosis:
    """As `list_devices`, with `ok`: whether nothing is wrong with any phone; without phones, whether this computer
    can measure, where it is the workspace's device.

    `runtime`: the one in use; else the one that the workspace remembers, or the profile's. On each phone every library
    that was added for it runs a tiny network. Other programs on this computer do not disturb a phone.
    """
    neighbours = HostNeighbours().look()
    settings = space.settings(runtime=runtime)
    listed = list_devices(settings.runtime, try_out=not clean, clean=clean)
    if not listed.phones and not listed.problems:
        listed = replace(listed, problems=(Problem(NOT_READY, "adb sees no phone", PLUG_IN),))
    ok = not listed.problems and not any(phone.problems for phone in listed.phones)
    if not listed.phones and settings.device == HOST:  # work on this computer needs no phone, nor adb
        ok = bool(listed.hosts)
    return Diagnosis(ok, listed, neighbours, tuple(_busy(neighbours)))
