"""The phone that `--device NAME` means, ready to measure on, and one file measured on it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from amc_mobile.device import health
from amc_mobile.device.bench import runner_program
from amc_mobile.device.bench_manifest import BenchModel, BenchTiming
from amc_mobile.device.bench_results import BenchError, BenchResult
from amc_mobile.device.clock_mode import UNLOCKED
from amc_mobile.device.phone_device import OnWait, PhoneDevice
from amc_mobile.device.phone_facts import read_facts
from amc_mobile.device.profile import load_profiles, profile_named
from amc_mobile.device.runtime_library import choose_library, list_libraries
from amc_mobile.device.selection import select_phone
from amc_mobile.device.user_folder import profiles_folder, runtimes_folder
from amc_mobile.errors import DeviceError, InvalidConfig, PhoneUnfit
from amc_mobile.latency.measurement import ModelMeasurement, Pass
from amc_mobile.latency.protocol import ProtocolConfig
from amc_mobile.workflows.progress import Progress

DRIFT_REPEATS = 2
# Loading and the first inference of a large model on a slow phone; the samples themselves end after their own limit.
MODEL_PASS_LIMIT_S = 60


@dataclass(frozen=True)
class PhoneChoice:
    """What the user asks of a phone besides its kind. `waived`: names of problems that do not matter."""

    serial: str | None = None
    clock_mode: str = UNLOCKED
    waived: Collection[str] = ()


def open_phone(
    device: str, runtime: str, threads: int | None, choice: PhoneChoice, on_wait: OnWait | None = None
) -> PhoneDevice:
    """The attached phone that fits the profile `device`, with the newest library added for `runtime` and the runner.

    Raises InvalidConfig, InvalidInput without a library, DeviceError naming what is wrong with which phone.
    """
    health.check_waivers(choice.waived)
    profiles = load_profiles(profiles_folder())
    profile = profile_named(profiles, device)
    if profile.is_host:
        raise InvalidConfig(f"--device {device} is this computer, not a phone")
    libraries = list_libraries(runtimes_folder())
    adb = select_phone(profile, profiles, serial=choice.serial)
    library = choose_library(libraries, runtime, read_facts(adb).abis)
    return PhoneDevice(
        adb, profile, library, runner_program(library.abi),
        threads=threads, mode=choice.clock_mode, waived=choice.waived, on_wait=on_wait,
    )  # fmt: skip


def measure_on_phone(
    device: PhoneDevice, model: bytes, progress: Progress, config: ProtocolConfig | None = None
) -> ModelMeasurement:
    """Measures one whole model in passes with a fresh session each.

    Where heat came over the phone meanwhile, it cools down and measures again; PhoneUnfit after the last repeat.
    """
    config = config or ProtocolConfig()
    with device.session():
        for repeat in range(DRIFT_REPEATS + 1):
            passes = []
            for one in _passes(device, model, config):
                passes.append(one)
                progress("measure", len(passes), config.model_passes, "again, after heat" if repeat else "")
            try:
                device.require_steady()
                break
            except PhoneUnfit:
                if repeat == DRIFT_REPEATS:
                    raise
                device.cool_down()
        return ModelMeasurement(tuple(passes), device.conditions(), config.warmup_runs)


def _passes(device: PhoneDevice, model: bytes, config: ProtocolConfig) -> Iterator[Pass]:
    own = config.model_timing
    timing = BenchTiming(own.warmup_runs, own.samples, own.min_sample_ms, own.max_s, own.min_samples)
    entries = [BenchModel("model", "model")] * config.model_passes
    deadline_s = 60 + MODEL_PASS_LIMIT_S * config.model_passes
    for event in device.bench(entries, {"model": model}, timing, deadline_s=deadline_s):
        if isinstance(event, BenchError):
            raise DeviceError(f"the phone does not run this model: {event.message}")
        if isinstance(event, BenchResult):
            yield Pass(event.samples_ms)
