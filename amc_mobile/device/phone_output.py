"""What a phone says about itself, understood: pure functions from text to plain data.

Phones differ and vendors change the texts: each parser takes what it needs, and raises PhoneOutputInvalid naming the
source where that is missing or impossible. Nothing here talks to a phone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from amc_mobile.errors import PhoneOutputInvalid

MAX_CORES = 1024
MAX_INT_DIGITS = 18
CPU_TYPE, GPU_TYPE, BATTERY_TYPE, SKIN_TYPE, NPU_TYPE = 0, 1, 2, 3, 9
# Types 6 and 7 hold currents and voltages in thousands, -1 vendor sensors of any kind.
TEMPERATURE_TYPES = (CPU_TYPE, GPU_TYPE, BATTERY_TYPE, SKIN_TYPE, NPU_TYPE)
PLAUSIBLE_CELSIUS = (-40.0, 150.0)

# Controls but tab and line end, marks that reorder or hide text, halves of surrogates.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_PROPERTY = re.compile(r"^\[([^\]\n]+)\]: \[(.*?)\]$(?=\n\[|\n*\Z)", re.MULTILINE | re.DOTALL)
_TEMPERATURE = re.compile(
    r"Temperature\{mValue=([^,}]{1,40}), mType=(-?\d{1,4}), mName=([^,}]{0,200}), mStatus=(\d{1,4})\}"
)


@dataclass(frozen=True)
class CpuPolicy:
    """Cores that share a clock. Clocks in kHz, as the kernel gives them; `scaling_max_khz` is what heat allows now."""

    cores: tuple[int, ...]
    max_khz: int
    scaling_max_khz: int
    governor: str


@dataclass(frozen=True)
class Temperature:
    celsius: float
    kind: int  # CPU_TYPE, GPU_TYPE, BATTERY_TYPE, SKIN_TYPE or NPU_TYPE
    name: str


@dataclass(frozen=True)
class ThermalState:
    """`status`: 0 none, 1 light, 2 moderate ... 6 shutdown. `temperatures`: now, from the sensors, not cached."""

    status: int
    temperatures: tuple[Temperature, ...]

    def hottest_celsius(self, kind: int) -> float | None:
        return max((t.celsius for t in self.temperatures if t.kind == kind), default=None)


@dataclass(frozen=True)
class BatteryState:
    percent: float
    celsius: float | None


def phone_text(content: bytes) -> str:
    """What a phone said, decoded: every text of a phone enters here, and none can command a terminal."""
    return visible(content.decode("utf-8", errors="replace").replace("\r\n", "\n"))


def visible(text: str) -> str:
    """Text with `?` in place of what a terminal obeys or does not show; tabs and line ends stay."""
    return _UNSEEN.sub("?", text)


def parse_properties(text: str) -> dict[str, str]:
    """`getprop` without arguments. Values may hold line ends. Raises PhoneOutputInvalid when there is no property."""
    text = text.replace("\r\n", "\n")
    properties = dict(_PROPERTY.findall(text))
    if not properties:
        raise PhoneOutputInvalid("properties (getprop)", f"no line of the form [key]: [value] in {_excerpt(text)}")
    return properties


def parse_core_list(text: str) -> tuple[int, ...]:
    """The kernel's lists of cores: `0-3,6` and `0 1 2 3`, in order without repeats. May be empty."""
    cores: set[int] = set()
    for word in re.split(r"[,\s]+", text.strip()):
        if not word:
            continue
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", word, re.ASCII)
        if match is None:
            raise PhoneOutputInvalid("list of cores", f"{_excerpt(word)} is no core and no range")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= MAX_CORES:
            raise PhoneOutputInvalid("list of cores", f"{_excerpt(word)} is not possible")
        cores.update(range(first, last + 1))
    return tuple(sorted(cores))


def parse_allowed_cores(status: str) -> tuple[int, ...]:
    """`Cpus_allowed_list` of a /proc/PID/status: where the kernel lets a process run, whatever mask was asked for."""
    match = re.search(r"^Cpus_allowed_list:[ \t]*(\S+)[ \t]*$", status, re.MULTILINE)
    if match is None:
        raise PhoneOutputInvalid("process status", "it has no Cpus_allowed_list")
    return parse_core_list(match[1])


def parse_cpu_policies(text: str) -> tuple[CpuPolicy, ...]:
    """Lines `policyN/FILE:CONTENT` of /sys/devices/system/cpu/cpufreq, ordered by maximum clock, slowest first.

    Empty when the phone shows none. Raises PhoneOutputInvalid when a policy lacks its cores or clocks, or a core is in
    two policies.
    """
    policies: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(?:.*/)?(policy\d{1,4})/(\w{1,40}):(.*)", line.strip(), re.ASCII)
        if match:
            policies.setdefault(match[1], {})[match[2]] = match[3].strip()
    parsed = [_policy(name, files) for name, files in policies.items()]
    cores = [core for policy in parsed for core in policy.cores]
    if len(set(cores)) != len(cores):
        raise PhoneOutputInvalid("core clocks (cpufreq)", "a core belongs to two policies")
    return tuple(sorted(parsed, key=lambda policy: (policy.max_khz, policy.cores)))


def _policy(name: str, files: Mapping[str, str]) -> CpuPolicy:
    source = f"core clocks (cpufreq/{name})"
    cores = parse_core_list(files.get("related_cpus", ""))
    if not cores:
        raise PhoneOutputInvalid(source, "related_cpus names no core")
    max_khz = _whole(files.get("cpuinfo_max_freq", ""), source, "cpuinfo_max_freq")
    scaling = files.get("scaling_max_freq", "")  # some vendors hide it from the shell user
    return CpuPolicy(
        cores,
        max_khz,
        _whole(scaling, source, "scaling_max_freq") if scaling else max_khz,
        files.get("scaling_governor", "") or "unknown",
    )


def parse_processor_name(text: str) -> str:
    """Of /proc/cpuinfo, often empty. Raises PhoneOutputInvalid when it lists no processor."""
    lines = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]
    if "processor" not in dict(lines):
        raise PhoneOutputInvalid("/proc/cpuinfo", f"no processor in {_excerpt(text)}")
    return next((value for key, value in lines if key in ("Hardware", "model name") and value), "")


def parse_thermal(text: str) -> ThermalState:
    """`dumpsys thermalservice`: the status, and the temperatures the sensors give now; cached ones may be hours old.

    Values outside what a phone survives are left out: some sensors of these types report other things.
    """
    status = re.search(r"^\s*Thermal Status: (\d{1,2})\s*$", text, re.MULTILINE | re.ASCII)
    if status is None:
        raise PhoneOutputInvalid("thermal state (dumpsys thermalservice)", f"no 'Thermal Status' in {_excerpt(text)}")
    _, _, current = text.partition("Current temperatures from HAL:")
    current, _, _ = current.partition("Current cooling devices from HAL:")
    temperatures = []
    for value, kind, name, _ in _TEMPERATURE.findall(current):
        celsius = _number(value)
        if celsius is None:
            raise PhoneOutputInvalid("thermal state (dumpsys thermalservice)", f"{_excerpt(value)} is no temperature")
        if int(kind) in TEMPERATURE_TYPES and PLAUSIBLE_CELSIUS[0] < celsius < PLAUSIBLE_CELSIUS[1]:
            temperatures.append(Temperature(celsius, int(kind), name))
    return ThermalState(int(status[1]), tuple(temperatures))


def parse_wakefulness(text: str) -> str:
    """Of `dumpsys power`: Awake, Asleep, Dreaming or Dozing; empty where it holds no such line."""
    match = re.search(r"\bmWakefulness=([A-Za-z]{1,20})\b", text, re.ASCII)
    return match[1] if match else ""


def parse_battery(text: str) -> BatteryState:
    """`dumpsys battery`. Its temperature is in tenths of a degree."""
    source = "battery state (dumpsys battery)"
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), value.strip())  # later repeats are logs of broadcasts
    if "level" not in values:
        raise PhoneOutputInvalid(source, f"no 'level' in {_excerpt(text)}")
    level = _whole(values["level"], source, "level")
    scale = _whole(values.get("scale", "100"), source, "scale")
    if scale == 0 or level > scale:
        raise PhoneOutputInvalid(source, f"level {level} of {scale}")
    celsius = None
    if "temperature" in values:
        tenths = _number(values["temperature"])
        if tenths is None:
            raise PhoneOutputInvalid(source, f"temperature {_excerpt(values['temperature'])}")
        celsius = tenths / 10
    return BatteryState(100 * level / scale, celsius)


def parse_free_bytes(text: str) -> int:
    """Bytes available on the last file system of a `df -k`. Long device names break the line in two."""
    lines = text.strip().splitlines()
    if len(lines) < 2 or "vailable" not in lines[0]:
        raise PhoneOutputInvalid("free space (df)", f"no table in {_excerpt(text)}")
    words = " ".join(lines[1:]).split()
    numbers = [index for index, word in enumerate(words) if re.fullmatch(r"\d{1,3}%", word, re.ASCII)]
    if not numbers or numbers[-1] < 1:
        raise PhoneOutputInvalid("free space (df)", f"no line with a percentage in {_excerpt(text)}")
    return _whole(words[numbers[-1] - 1], "free space (df)", "available") * 1024


def parse_switch(text: str, source: str) -> bool:
    """A setting that is `1`, `0` or `null` (never set: off)."""
    value = text.strip()
    if value not in ("0", "1", "null", ""):
        raise PhoneOutputInvalid(source, f"{_excerpt(value)} is neither 0 nor 1")
    return value == "1"


def _whole(text: str, source: str, what: str) -> int:
    if not re.fullmatch(rf"\d{{1,{MAX_INT_DIGITS}}}", text.strip(), re.ASCII):
        raise PhoneOutputInvalid(source, f"{what} = {_excerpt(text)} is no number")
    return int(text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _excerpt(text: str) -> str:
    return repr(text[:80])
