"""What is known of an attached phone: read in one go, since each question to a phone costs a round trip."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from amc_mobile.device.adb import PHONE_FOLDER, AdbPhone
from amc_mobile.device.conditions import core_ranges, unit_of
from amc_mobile.device.neighbours import LOOK, Neighbours, parse_neighbours
from amc_mobile.device.phone_output import (
    BATTERY_TYPE,
    SKIN_TYPE,
    BatteryState,
    CpuInfo,
    CpuPolicy,
    ThermalState,
    parse_battery,
    parse_cpu_info,
    parse_cpu_policies,
    parse_free_bytes,
    parse_properties,
    parse_switch,
    parse_thermal,
    parse_wakefulness,
)
from amc_mobile.errors import PhoneOutputInvalid

NO_SERIALS = ("", "unknown", "0123456789abcdef")  # what phones answer that have none of their own
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# One process for all files: a phone starts some 100 a second.
_CLOCKS = (
    "cd /sys/devices/system/cpu/cpufreq && "
    "grep -H . policy*/related_cpus policy*/cpuinfo_max_freq policy*/scaling_max_freq policy*/scaling_governor"
)
NEIGHBOURS = "neighbours"
STATE_QUESTIONS = {
    "thermal": "dumpsys thermalservice",
    "battery": "dumpsys battery",
    "clocks": _CLOCKS,
    "low_power": "settings get global low_power",
    "screen": "dumpsys power | grep -m 1 mWakefulness=",
}
FACT_QUESTIONS = {
    "properties": "getprop",
    "cpu_info": "cat /proc/cpuinfo",
    "free": f"df -k {PHONE_FOLDER}",
    "boot_id": f"cat {BOOT_ID}",
    **STATE_QUESTIONS,
}


@dataclass(frozen=True)
class PhoneState:
    """What changes while a phone works. `thermal` is None on Androids below 10, which have no thermal service.

    `neighbours`: None where they were not looked for, or the phone hides them.
    """

    thermal: ThermalState | None
    battery: BatteryState
    policies: tuple[CpuPolicy, ...]
    low_power_mode: bool
    screen: str = ""  # in Android's words, `Awake`, `Dozing` ...; empty where it does not tell
    neighbours: Neighbours | None = None

    @property
    def celsius(self) -> float | None:
        """The warmer of skin and battery; None on a phone that tells neither."""
        known = [self.thermal.hottest_celsius(kind) if self.thermal else None for kind in (SKIN_TYPE, BATTERY_TYPE)]
        return max((value for value in (*known, self.battery.celsius) if value is not None), default=None)


@dataclass(frozen=True)
class PhoneFacts:
    """What identifies a phone, and its state when it was asked."""

    serial: str
    properties: Mapping[str, str]
    cpu: CpuInfo
    free_bytes: int
    boot_id: str
    state: PhoneState

    @property
    def model(self) -> str:
        return _one_line(self.properties.get("ro.product.model", "")) or "unknown"

    @property
    def soc(self) -> str:
        """The chip: many phones tell only their board's platform."""
        for key in ("ro.soc.model", "ro.board.platform", "ro.hardware"):
            if value := _one_line(self.properties.get(key, "")):
                return value
        return self.cpu.name or "unknown"

    @property
    def unit(self) -> str:
        """Which phone of its model it is, the same over cable and network."""
        known = self.properties.get("ro.serialno", "")
        return unit_of(self.serial if known.lower() in NO_SERIALS else known)

    @property
    def sdk(self) -> int:
        text = self.properties.get("ro.build.version.sdk", "")
        return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0

    @property
    def android(self) -> str:
        return _one_line(self.properties.get("ro.build.version.release", "")) or "unknown"

    @property
    def abis(self) -> tuple[str, ...]:
        text = self.properties.get("ro.product.cpu.abilist", "") or self.properties.get("ro.product.cpu.abi", "")
        return tuple(abi for abi in text.split(",") if abi)

    @property
    def clusters(self) -> str:
        """The core clusters as `0-3 at 1700 MHz, 4-7 at 2360 MHz`; empty when the phone does not tell."""
        return ", ".join(f"{core_ranges(p.cores)} at {p.max_khz // 1000} MHz" for p in self.state.policies)


def _one_line(value: str) -> str:
    return " ".join(value.split())


def read_facts(adb: AdbPhone) -> PhoneFacts:
    """Raises PhoneOutputInvalid naming what the phone does not answer as a phone should."""
    answers = ask(adb, FACT_QUESTIONS, what="asking the phone about itself")
    boot_id = answers["boot_id"].strip()
    if not re.fullmatch(r"[0-9a-f-]{36}", boot_id):
        raise PhoneOutputInvalid("boot id", f"{boot_id[:60]!r}")
    return PhoneFacts(
        adb.serial,
        parse_properties(answers["properties"]),
        parse_cpu_info(answers["cpu_info"]),
        parse_free_bytes(answers["free"]),
        boot_id,
        state_from(answers),
    )


def read_state(adb: AdbPhone) -> PhoneState:
    return state_from(ask(adb, STATE_QUESTIONS, what="asking the phone how it is"))


def read_neighbours(adb: AdbPhone) -> Neighbours | None:
    """What other programs take of the phone now; takes half a second."""
    return parse_neighbours(ask(adb, {NEIGHBOURS: LOOK}, what="looking for other programs")[NEIGHBOURS])


def read_properties(adb: AdbPhone) -> dict[str, str]:
    return parse_properties(adb.run("getprop"))


def ask(adb: AdbPhone, questions: Mapping[str, str], *, what: str) -> dict[str, str]:
    """Runs several scripts in one shell: name -> what each printed. A script that fails leaves an empty answer."""
    token = secrets.token_hex(8)
    return answers_in(adb.shell(asking(questions, token), what=what, check=False).text, questions, token)


def asking(questions: Mapping[str, str], token: str) -> str:
    """The script whose output `answers_in` understands. `token`: random, since the answers may hold anything."""
    return "\n".join(f"echo {token} {name}\n( {command}\n) 2>/dev/null" for name, command in questions.items())


def answers_in(text: str, questions: Mapping[str, str], token: str) -> dict[str, str]:
    """What was printed by each question's script; what stands before the first is left out."""
    answers = dict.fromkeys(questions, "")
    for part in re.split(rf"^{token} ", text.replace("\r\n", "\n"), flags=re.MULTILINE)[1:]:
        name, _, answer = part.partition("\n")
        answers[name] = answer
    return answers


def state_from(answers: Mapping[str, str]) -> PhoneState:
    """From the answers to STATE_QUESTIONS, and to NEIGHBOURS where that was asked too."""
    has_thermal = "Thermal Status" in answers["thermal"] or "HAL" in answers["thermal"]
    return PhoneState(
        parse_thermal(answers["thermal"]) if has_thermal else None,
        parse_battery(answers["battery"]),
        parse_cpu_policies(answers["clocks"]),
        parse_switch(answers["low_power"], "low-power setting"),
        parse_wakefulness(answers["screen"]),
        parse_neighbours(answers.get(NEIGHBOURS, "")),
    )
