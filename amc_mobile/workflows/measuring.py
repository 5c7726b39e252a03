"""The device that the settings name: this computer, or a phone that adb sees."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from amc_mobile.device.conditions import Conditions
from amc_mobile.device.health import waiting_stage
from amc_mobile.device.host import HostDevice, installed_runtimes
from amc_mobile.device.neighbours import Neighbours
from amc_mobile.device.profile import DeviceProfile, load_profiles, profile_named
from amc_mobile.device.runtime_library import BENCHMARK_MODEL
from amc_mobile.device.timing import Device, Job, TimedPass
from amc_mobile.device.user_folder import profiles_folder
from amc_mobile.errors import DeviceError, InvalidConfig, MissingDependency
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings


def profile_of(settings: Settings) -> DeviceProfile:
    """Raises InvalidConfig for a device that no profile describes."""
    return profile_named(load_profiles(profiles_folder()), settings.device)


def chosen_runtime(settings: Settings) -> str:
    """The runtime asked for, by its files' format: "tflite" or "onnxruntime"; else the device's own.

    That is on this computer TFLite where installed. Raises MissingDependency for a runtime that this computer is to use
    and does not have, InvalidConfig for one that only phones have.
    """
    if settings.offline and settings.runtime:
        return settings.runtime
    profile = profile_of(settings)
    if not profile.is_host:
        wanted = settings.runtime or profile.runtime
        return "onnxruntime" if wanted == "onnxruntime" else "tflite"
    if settings.runtime == BENCHMARK_MODEL:
        raise InvalidConfig(
            f"{BENCHMARK_MODEL} measures on phones only", next_step="pass --runtime tflite, or a phone as --device"
        )
    installed = installed_runtimes()
    runtime = settings.runtime or ("tflite" if "tflite" in installed else "onnxruntime")
    if runtime not in installed:
        raise MissingDependency("ai-edge-litert" if runtime == "tflite" else "onnxruntime", "tflite")
    return runtime


def open_device(settings: Settings, runtime: str, progress: Progress) -> Device:
    """Raises DeviceUnavailable saying what adb sees, InvalidInput when the phone lacks a library for `runtime`."""
    profile = profile_of(settings)

    def on_neighbours(found: Neighbours, waited_s: float) -> None:
        progress("wait for other programs to end", int(waited_s), int(profile.quiet_wait_s), found.text())

    if profile.is_host:
        return HostDevice(
            runtime,
            settings.threads,
            patience_s=profile.quiet_wait_s,
            waived=settings.waived,
            on_wait=on_neighbours,
        )
    # Only now: this computer can measure where adb is not installed.
    from amc_mobile.device.adb_server import AdbServer
    from amc_mobile.device.bench import runner_program
    from amc_mobile.device.benchmark_model_passes import BenchmarkModelPasses
    from amc_mobile.device.clock_mode import give_back_left_over
    from amc_mobile.device.phone_device import PhoneDevice
    from amc_mobile.device.phone_facts import read_facts
    from amc_mobile.device.phone_passes import PhonePasses
    from amc_mobile.device.profile import most_special
    from amc_mobile.device.runtime_library import choose_library, list_libraries
    from amc_mobile.device.selection import select_phone
    from amc_mobile.device.user_folder import runtimes_folder

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
    by_program = settings.runtime == BENCHMARK_MODEL and runtime == "tflite"
    library = choose_library(list_libraries(runtimes_folder()), BENCHMARK_MODEL if by_program else runtime, facts.abis)

    def on_wait(found: Mapping[str, str], waited_s: float) -> None:
        progress(waiting_stage(found), int(waited_s), int(profile.cooldown_s), "; ".join(found.values()))

    is_program = library.runtime == BENCHMARK_MODEL
    phone = PhoneDevice(
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
    return BenchmarkModelPasses(phone) if is_program else PhonePasses(phone)


class RecordedDevice:
    """A device that is not asked any more: what was measured on it is read, nothing is measured."""

    jobs_per_batch = 1

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions

    def conditions(self) -> Conditions:
        return self._conditions

    def session(self) -> AbstractContextManager[object]:
        raise self._error()

    def passes(self, jobs: Sequence[Job]) -> Generator[TimedPass, None, None]:
        raise self._error()

    def alternate(self, before: Job, after: Job, rounds: int) -> Iterator[tuple[TimedPass, TimedPass]]:
        raise self._error()

    def is_steady(self) -> bool:
        return True

    def settle(self) -> None:
        raise self._error()

    def neighbours(self) -> Neighbours | None:
        return None

    def screen(self) -> str:
        return ""

    def most_neighbours(self) -> Neighbours | None:
        return None

    def _error(self) -> DeviceError:
        return DeviceError(
            f"the table of {self._conditions.device} is used without the device, and lacks something",
            next_step="attach the device and run `amc-mobile profile`",
        )
