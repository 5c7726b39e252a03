"""Kinds of phones: how to recognise one, and how to measure on it. One TOML file per kind."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from amc_mobile.device.phone_output import CpuPolicy, parse_core_list
from amc_mobile.errors import InvalidConfig, PhoneOutputInvalid
from amc_mobile.formats import LIBRARY_RUNTIMES, TFLITE
from amc_mobile.store import read_toml


def user_folder() -> Path:
    """AMC_MOBILE_HOME, or `~/.amc-mobile`. It may not exist yet."""
    return Path(os.environ.get("AMC_MOBILE_HOME") or Path.home() / ".amc-mobile")


def profiles_folder() -> Path:
    return user_folder() / "device_profiles"


def runtimes_folder() -> Path:
    return user_folder() / "runtimes"


def locks_folder() -> Path:
    return user_folder() / "locks"


def held_settings_folder() -> Path:
    return user_folder() / "held_settings"


def clock_caps_folder() -> Path:
    return user_folder() / "clock_caps"


def layouts_folder() -> Path:
    return user_folder() / "layouts"


def phone_file_stem(serial: str) -> str:
    """A phone's serial as a part of a file name: serials of wireless phones hold colons."""
    return re.sub(r"[^A-Za-z0-9.-]", lambda match: f"_{ord(match[0]):x}", serial)[:100]


_PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGED = _PACKAGE / "device_profiles"  # in a wheel
BUILT_IN = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent / "device_profiles"  # else at the checkout's top
HOST = "host"
NO_KEYS = ("name", "match", "is_built_in")  # fields that a file does not set by their name
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,40}")


@dataclass(frozen=True)
class DeviceProfile:
    """How to recognise a kind of phone and measure on it.

    `match`: alternatives; one fits when each of its properties matches its regular expression whole, whatever the case.
    `priority`: of several profiles that fit a phone the highest is proposed. `cores`: in the kernel's list form, empty:
    derived from the core clusters. `max_celsius`: skin and battery, before and while measuring; a phone above it is
    waited for until it is `hysteresis_celsius` cooler. `cooldown_s`: the longest wait for that, `quiet_wait_s` for
    other programs to end. `cap_wait_s`: a limit of the clocks that a cool phone keeps this long is its own.
    """

    name: str
    summary: str
    match: tuple[Mapping[str, re.Pattern[str]], ...] = ()
    priority: int = 10
    runtime: str = TFLITE.runtime
    threads: int = 1
    cores: str = ""
    max_celsius: float = 38.0  # a phone that charges is at 33 to 37 C
    hysteresis_celsius: float = 2.0
    min_battery_percent: float = 25.0
    cooldown_s: float = 900.0
    quiet_wait_s: float = 60.0
    cap_wait_s: float = 60.0
    is_host: bool = False
    is_built_in: bool = False  # not one of the user's; no key of the file

    def fits(self, properties: Mapping[str, str]) -> bool:
        return any(
            all(pattern.fullmatch(properties.get(key, "")) for key, pattern in rules.items()) for rules in self.match
        )

    def cores_for(self, threads: int, policies: Sequence[CpuPolicy]) -> tuple[int, ...]:
        """The cores to run on: the profile's own where they are enough, or derived. Empty: the phone's choice.

        Built-in profiles serve several phones: cores that this one lacks are left to what is derived.
        """
        own = parse_core_list(self.cores)
        there = {core for policy in policies for core in policy.cores}
        are_there = not self.is_built_in or not there or there.issuperset(own)
        return own if len(own) >= threads and are_there else default_cores(threads, policies)


def default_cores(threads: int, policies: Sequence[CpuPolicy]) -> tuple[int, ...]:
    """The fastest cluster with enough cores, or as many of the fastest clusters as it takes; empty without policies.

    Core 0 serves interrupts: it is left out wherever the others suffice, and always for one thread.
    """
    fastest_first = sorted(policies, key=lambda policy: policy.max_khz, reverse=True)
    for policy in fastest_first:
        cores = tuple(core for core in policy.cores if core != 0)
        if len(cores) >= threads:
            return cores
    taken: list[int] = []
    for policy in fastest_first:
        taken += policy.cores
        if len(taken) - (0 in taken) >= threads:
            return tuple(sorted(core for core in taken if core != 0))
    return tuple(sorted(taken)) if len(taken) >= threads and threads > 1 else ()


def load_profiles(user_folder: Path | None = None) -> dict[str, DeviceProfile]:
    """The profiles by name; a file of the user's folder takes the place of the built-in one of its name.

    Raises InvalidConfig naming file, key and value.
    """
    paths = {path.stem: path for path in sorted(BUILT_IN.glob("*.toml"))}
    if user_folder is not None and user_folder.is_dir():
        paths |= {path.stem: path for path in sorted(user_folder.glob("*.toml"))}
    return {name: read_profile(path) for name, path in paths.items()}


def read_profile(path: Path) -> DeviceProfile:
    """Raises InvalidConfig for unknown keys, wrong types, bad regular expressions and impossible values."""
    if not _NAME.fullmatch(path.stem):
        raise InvalidConfig(f"{path}: a profile's name has small letters, digits and _ only", next_step="rename it")
    document = read_toml(path)
    rules = document.pop("match", [])
    types = {field.name: _type(field.default) for field in fields(DeviceProfile) if field.name not in NO_KEYS}
    for key, value in document.items():
        if key not in types:
            raise InvalidConfig(f"{path}: unknown key {key!r}", next_step=f"known keys: match, {', '.join(types)}")
        if type(value) is not types[key] and not (types[key] is float and type(value) is int):
            raise InvalidConfig(
                f"{path}: {key} = {str(value)[:60]!r} is not of type {types[key].__name__}", next_step="correct it"
            )
    if "summary" not in document:
        raise InvalidConfig(f"{path}: has no summary", next_step='add summary = "..."')
    profile = DeviceProfile(path.stem, match=_rules(path, rules), is_built_in=path.parent == BUILT_IN, **document)
    _check(path, profile)
    return profile


def _type(default: Any) -> type:
    return type(default) if isinstance(default, (bool, int, float, str)) else str  # a field without default: summary


def _rules(path: Path, rules: Any) -> tuple[Mapping[str, re.Pattern[str]], ...]:
    if not isinstance(rules, list) or not all(isinstance(table, dict) and table for table in rules):
        raise InvalidConfig(f"{path}: match must be tables of properties", next_step="write [[match]] above them")
    compiled = []
    for table in rules:
        patterns = {}
        for key, value in table.items():
            if not isinstance(value, str):
                raise InvalidConfig(f"{path}: match {key} = {value!r} is no text", next_step="put the key in quotes")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # of expressions that will mean something else
                    patterns[key] = re.compile(value, re.IGNORECASE)
            except (re.error, Warning, OverflowError, RecursionError) as error:
                raise InvalidConfig(f"{path}: match {key} = {value!r}: {error}", next_step="correct it") from error
        compiled.append(patterns)
    return tuple(compiled)


def _check(path: Path, profile: DeviceProfile) -> None:
    if profile.runtime not in LIBRARY_RUNTIMES:
        raise InvalidConfig(
            f"{path}: runtime = {profile.runtime!r}", next_step=f"use one of {', '.join(LIBRARY_RUNTIMES)}"
        )
    if not 1 <= profile.threads <= 64:
        raise InvalidConfig(f"{path}: threads = {profile.threads} is not between 1 and 64", next_step="correct it")
    try:
        cores = parse_core_list(profile.cores)
    except PhoneOutputInvalid as error:
        raise InvalidConfig(
            f"{path}: cores = {profile.cores!r} is no list such as 4-7", next_step="correct it"
        ) from error
    if cores == (0,):
        raise InvalidConfig(f"{path}: cores = {profile.cores!r}: core 0 serves interrupts", next_step="add another one")
    for key, low, high in (
        ("max_celsius", 0, 150), ("hysteresis_celsius", 0, 50), ("min_battery_percent", 0, 100),
        ("cooldown_s", 0, 86400), ("quiet_wait_s", 0, 86400), ("cap_wait_s", 0, 86400),
    ):  # fmt: skip
        value = getattr(profile, key)
        if not low <= value <= high:
            raise InvalidConfig(f"{path}: {key} = {value} is not between {low} and {high}", next_step="correct it")


def matching_profiles(profiles: Mapping[str, DeviceProfile], properties: Mapping[str, str]) -> list[DeviceProfile]:
    """The profiles that fit a phone, the most special first."""
    fitting = [profile for profile in profiles.values() if profile.fits(properties)]
    return sorted(fitting, key=lambda profile: (-profile.priority, profile.name))


def most_special(
    asked: DeviceProfile, profiles: Mapping[str, DeviceProfile], properties: Mapping[str, str]
) -> DeviceProfile:
    """The profile for a phone that fits `asked`: another one that fits it better knows what to avoid on it.

    One of the user's own profiles is used as it is.
    """
    better = [profile for profile in matching_profiles(profiles, properties) if profile.priority > asked.priority]
    return better[0] if better and asked.is_built_in else asked


def profile_named(profiles: Mapping[str, DeviceProfile], name: str) -> DeviceProfile:
    """Raises InvalidConfig listing the names there are."""
    if name not in profiles:
        raise InvalidConfig(f"no device {name!r}", next_step=f"use --device with one of {', '.join(sorted(profiles))}")
    return profiles[name]
