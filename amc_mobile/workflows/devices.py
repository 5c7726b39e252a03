"""What can measure: this computer, the phones adb sees, and what is wrong with each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from amc_mobile.device import health, trial
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.adb_server import AdbServer
from amc_mobile.device.attached_phone import AttachedPhone, remedy
from amc_mobile.device.bench import runner_program
from amc_mobile.device.clock_mode import give_back_left_over, noted_caps
from amc_mobile.device.neighbours import Neighbours
from amc_mobile.device.phone import remove_all
from amc_mobile.device.phone_device import PhoneDevice
from amc_mobile.device.phone_facts import PhoneFacts, read_facts, read_neighbours
from amc_mobile.device.phone_lock import phone_lock
from amc_mobile.device.profile import HOST, DeviceProfile, load_profiles, matching_profiles
from amc_mobile.device.runtime_library import (
    BENCHMARK_MODEL,
    MAVEN,
    RuntimeLibrary,
    choose_library,
    list_libraries,
)
from amc_mobile.device.user_folder import locks_folder, profiles_folder, runtimes_folder
from amc_mobile.errors import AmcMobileError, DeviceError, InvalidConfig, InvalidInput
from amc_mobile.workflows.workspace import Workspace

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


def list_devices(runtime: str = "", *, try_out: bool = False, clean: bool = False) -> dict[str, Any]:
    """This computer under each runtime that is installed, and every phone that adb sees, with its problems.

    `runtime`: that has to be there; else the profile's. `try_out`: runs a tiny network with each library. `clean`:
    removes amc-mobile's files from the phones: `removed_bytes` of each.
    """
    problems: list[dict[str, str]] = []
    try:
        server = AdbServer()
        attached = server.settled_phones()
    except DeviceError as error:
        # Without adb this computer can still measure.
        return {"devices": _host(), "phones": [], "problems": [_problem(NO_ADB, error.message, error.next_step)]}
    profiles = load_profiles(profiles_folder())
    libraries = _libraries(problems)
    with ThreadPoolExecutor(max_workers=8) as pool:  # a phone that hangs must not keep the others waiting
        phones = list(
            pool.map(lambda phone: _phone(server, phone, profiles, libraries, runtime, try_out, clean), attached)
        )
    return {"devices": _host(), "phones": phones, "problems": problems}


def _host() -> list[dict[str, Any]]:
    from amc_mobile.device.host import HostDevice, installed_runtimes

    installed = installed_runtimes()
    return [HostDevice(name).conditions().to_document() for name in ("tflite", "onnxruntime") if name in installed]


def _libraries(problems: list[dict[str, str]]) -> list[RuntimeLibrary]:
    try:
        return list_libraries(runtimes_folder())
    except AmcMobileError as error:
        problems.append(_problem(NO_RUNTIME, error.message, error.next_step))
        return []


def _problem(name: str, what: str, next_step: str) -> dict[str, str]:
    return {"name": name, "what": what, "remedy": next_step}


def _phone(
    server: AdbServer,
    attached: AttachedPhone,
    profiles: Mapping[str, DeviceProfile],
    libraries: Sequence[RuntimeLibrary],
    runtime: str,
    try_out: bool,
    clean: bool,
) -> dict[str, Any]:
    document: dict[str, Any] = {"serial": attached.serial, "state": attached.state, "problems": []}
    if not attached.is_ready:
        what = f"adb says {attached.state}"
        document["problems"].append(_problem(NOT_READY, what, remedy(attached.state)))
        return document
    try:
        adb = AdbPhone(server, attached)
        give_back_left_over(adb)
        if clean:
            _clean(adb, document)
        facts = read_facts(adb)
        neighbours = read_neighbours(adb)
    except DeviceError as error:
        document["problems"].append(_problem(NO_ANSWER, error.message, error.next_step))
        return document
    fitting = matching_profiles(profiles, facts.properties)
    state = facts.state
    document |= {
        "model": facts.model,
        "soc": facts.soc,
        "android": facts.android,
        "sdk": facts.sdk,
        "abis": list(facts.abis),
        "clusters": facts.clusters,
        "governors": sorted({policy.governor for policy in state.policies}),
        "celsius": state.celsius,
        "battery_percent": state.battery.percent,
        "free_bytes": facts.free_bytes,
        "neighbours": neighbours.to_document() if neighbours else None,
        "profiles": [profile.name for profile in fitting],
        "runtimes": [library.label for library in libraries if library.abi in facts.abis],
    }
    profile = fitting[0] if fitting else None
    document["problems"] += _phone_problems(facts, profile, libraries, runtime) + _busy(neighbours)
    if try_out and profile is not None:
        tried = {
            f"{one.label} ({one.path.name})": _trial(adb, profile, one) for one in libraries if one.abi in facts.abis
        }
        document["trials"] = {label: problem["what"] if problem else "ran" for label, problem in tried.items()}
        document["problems"] += [problem for problem in tried.values() if problem]
    return document


def _clean(adb: AdbPhone, document: dict[str, Any]) -> None:
    try:
        with phone_lock(adb.serial, locks_folder()):
            document["removed_bytes"] = remove_all(adb)
    except DeviceError as error:
        document["problems"].append(_problem(NOT_CLEANED, error.message, error.next_step))


def _trial(adb: AdbPhone, profile: DeviceProfile, library: RuntimeLibrary) -> dict[str, str] | None:
    """The problem that keeps a library from running a tiny network on the phone, or None."""
    try:
        runner = library.path if library.runtime == BENCHMARK_MODEL else runner_program(library.abi)
    except (DeviceError, InvalidConfig) as error:
        return _problem(NO_RUNNER, error.message, error.next_step)
    try:
        trial.try_out(PhoneDevice(adb, profile, library, runner))
    except DeviceError as error:
        what = f"{library.label} does not run on the phone: {error.message}"
        return _problem(TRIAL_FAILED, what, error.next_step or f"add another build or version of it: {MAVEN}")
    return None


def _busy(found: Neighbours | None) -> list[dict[str, str]]:
    busy = found is not None and found.is_busy
    return [_problem(health.BUSY, found.text(), health.REMEDIES[health.BUSY])] if found and busy else []


def _phone_problems(
    facts: PhoneFacts, profile: DeviceProfile | None, libraries: Sequence[RuntimeLibrary], runtime: str
) -> list[dict[str, str]]:
    found = []
    if profile is None:
        what = f"no profile fits {facts.model} with {'/'.join(facts.abis) or 'an unknown processor'}"
        found.append(_problem(NO_PROFILE, what, f"write one: a TOML file in {profiles_folder()}"))
    else:
        cores = profile.cores_for(profile.threads, facts.state.policies)
        limits = health.clock_limits(facts.state, cores, noted_caps(facts.serial))
        unfit = health.problems(facts, facts.state, profile) | limits
        found += [_problem(name, what, health.REMEDIES[name]) for name, what in unfit.items()]
        try:
            library = choose_library(libraries, runtime or profile.runtime, facts.abis)
            if library.libc == "glibc":
                what = f"{library.label} is built for Linux computers and does not load on Android"
                found.append(_problem(FOREIGN_RUNTIME, what, f"add an AAR: {MAVEN}"))
            if library.runtime != BENCHMARK_MODEL:  # which is its own runner
                runner_program(library.abi)
        except InvalidInput as error:
            found.append(_problem(NO_RUNTIME, error.message, error.next_step))
        except (DeviceError, InvalidConfig) as error:
            found.append(_problem(NO_RUNNER, error.message, error.next_step))
    if facts.free_bytes < SPACE_WANTED_BYTES:
        what = f"{facts.free_bytes >> 20} MiB free, {SPACE_WANTED_BYTES >> 20} MiB are comfortable"
        found.append(_problem(LITTLE_SPACE, what, "free some space on the phone"))
    if not facts.state.policies:
        what = "the phone hides its core clusters, so the fast cores are unknown"
        found.append(_problem(NO_CLUSTERS, what, "name the cores in a profile of your own: cores = ..."))
    return found


def devices_text(document: dict[str, Any]) -> str:
    from amc_mobile.report.tables import render_rows

    rows = [
        [row["device"], row["soc"], row["os"], f"{row['runtime']} {row['runtime_version']}", str(row["cores"])]
        for row in document["devices"]
    ]
    parts = [render_rows(["device", "processor", "system", "runtime", "cores"], rows)]
    if document["phones"]:
        headers = ["phone", "state", "model", "chip", "Android", "cores", "C", "battery", "free", "--device"]
        parts.append(render_rows(headers, [_phone_row(phone) for phone in document["phones"]]))
    return "\n\n".join([*parts, *_problem_lines(document)])


def _phone_row(phone: Mapping[str, Any]) -> list[str]:
    if "model" not in phone:
        return [phone["serial"], phone["state"], *[""] * 8]
    celsius = phone["celsius"]
    return [
        phone["serial"],
        phone["state"],
        phone["model"],
        phone["soc"],
        phone["android"],
        phone["clusters"],
        "" if celsius is None else f"{celsius:.1f}",
        f"{phone['battery_percent']:.0f} %",
        f"{phone['free_bytes'] / 1e9:.1f} GB",
        ", ".join(phone["profiles"]),
    ]


def _problem_lines(document: Mapping[str, Any]) -> list[str]:
    lines = _lines_of("", document["problems"])
    for phone in document["phones"]:
        lines += _lines_of(f"{phone['serial']}: ", phone["problems"])
    return lines


def _lines_of(owner: str, problems: Sequence[Mapping[str, str]]) -> list[str]:
    return [f"{owner}{problem['what']} [{problem['name']}]\n  next: {problem['remedy']}" for problem in problems]


def doctor(space: Workspace, runtime: str | None = None, *, clean: bool = False) -> dict[str, Any]:
    """As `list_devices`, with `ok`: whether nothing is wrong with any phone; without phones, whether this computer
    can measure, where it is the workspace's device.

    `runtime`: the one in use; else the one that the workspace remembers, or the profile's. On each phone every library
    that was added for it runs a tiny network. `this_computer`: the other programs on it; they do not disturb a phone.
    """
    from amc_mobile.device.host_neighbours import HostNeighbours

    found = HostNeighbours().look()
    here = {"neighbours": found.to_document() if found else None, "problems": _busy(found)}
    settings = space.settings(runtime=runtime)
    used = settings.runtime
    document = list_devices(used, try_out=not clean, clean=clean) | {"this_computer": here}
    phones = document["phones"]
    if not phones and not document["problems"]:
        document["problems"].append(_problem(NOT_READY, "adb sees no phone", PLUG_IN))
    ok = not document["problems"] and not any(phone["problems"] for phone in phones)
    if not phones and settings.device == HOST:  # work on this computer needs no phone, nor adb
        ok = bool(document["devices"])
    return {"ok": ok, **document}


def doctor_text(document: dict[str, Any]) -> str:
    verdict = "all is well" if document["ok"] else "what to correct is listed last"
    if document["ok"] and not document["phones"]:
        verdict = "all is well for work on this computer (--device host); for a phone see above"
    here = _lines_of("this computer: ", document["this_computer"]["problems"])
    removed = [
        f"{phone['serial']}: removed {phone['removed_bytes'] >> 20} MiB of amc-mobile's files"
        for phone in document["phones"]
        if "removed_bytes" in phone
    ]
    return "\n\n".join([devices_text(document), *here, *removed, verdict])
