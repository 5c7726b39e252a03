"""What is known of an attached phone, whether it is fit to measure on, and its clocks held meanwhile.

What is changed on the phone is noted on this computer first, so that a later process gives it back after a crash.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from amc_mobile.device.adb import PHONE_FOLDER, AdbPhone
from amc_mobile.device.conditions import core_ranges, unit_of
from amc_mobile.device.device import LOOK, Neighbours, parse_neighbours
from amc_mobile.device.phone_output import (
    BATTERY_TYPE,
    SKIN_TYPE,
    BatteryState,
    CpuPolicy,
    ThermalState,
    parse_battery,
    parse_cpu_policies,
    parse_free_bytes,
    parse_processor_name,
    parse_properties,
    parse_switch,
    parse_thermal,
    parse_wakefulness,
)
from amc_mobile.device.profiles import (
    DeviceProfile,
    clock_caps_folder,
    held_settings_folder,
    locks_folder,
    phone_file_stem,
)
from amc_mobile.errors import (
    CorruptFile,
    DeviceDisconnected,
    DeviceError,
    DeviceUnavailable,
    InvalidConfig,
    InvalidInput,
    PhoneBusy,
    PhoneUnfit,
)
from amc_mobile.store import held, read_json, write_json

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
    screen: str = ""  # in Android's words, `Awake`, `Dozing` ...; empty where unknown
    neighbours: Neighbours | None = None

    @property
    def celsius(self) -> float | None:
        """The warmer of skin and battery; None on a phone that reports neither."""
        sensors = [self.thermal.hottest_celsius(kind) if self.thermal else None for kind in (SKIN_TYPE, BATTERY_TYPE)]
        return max((celsius for celsius in (*sensors, self.battery.celsius) if celsius is not None), default=None)


@dataclass(frozen=True)
class PhoneFacts:
    """What identifies a phone, and its state when it was asked."""

    serial: str
    properties: Mapping[str, str]
    processor: str  # as the kernel names it
    free_bytes: int
    state: PhoneState

    @property
    def model(self) -> str:
        return _one_line(self.properties.get("ro.product.model", "")) or "unknown"

    @property
    def soc(self) -> str:
        """The chip: many phones give only their board's platform."""
        for key in ("ro.soc.model", "ro.board.platform", "ro.hardware"):
            if value := _one_line(self.properties.get(key, "")):
                return value
        return self.processor or "unknown"

    @property
    def unit(self) -> str:
        """Which phone of its model it is, the same over cable and network."""
        own = self.properties.get("ro.serialno", "")
        return unit_of(self.serial if own.lower() in NO_SERIALS else own)

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
        """The core clusters as `0-3 at 1700 MHz, 4-7 at 2360 MHz`; empty when the phone hides them."""
        return ", ".join(f"{core_ranges(p.cores)} at {p.max_khz // 1000} MHz" for p in self.state.policies)


def _one_line(value: str) -> str:
    return " ".join(value.split())


def read_facts(adb: AdbPhone) -> PhoneFacts:
    """Raises PhoneOutputInvalid naming what the phone does not answer as a phone should."""
    answers = ask(adb, FACT_QUESTIONS, what="asking the phone about itself")
    return PhoneFacts(
        adb.serial,
        parse_properties(answers["properties"]),
        parse_processor_name(answers["cpu_info"]),
        parse_free_bytes(answers["free"]),
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
    """What was printed by each question's script; what comes before the first is left out."""
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


LOW_BATTERY = "LOW_BATTERY"
HOT = "HOT"
THROTTLED = "THROTTLED"
LOW_POWER_MODE = "LOW_POWER_MODE"
EMULATOR = "EMULATOR"
CLOCK_DROPPED = "CLOCK_DROPPED"
CLOCK_LIMITED = "CLOCK_LIMITED"
BUSY = "BUSY"  # never keeps a phone from being measured; the result is flagged
FALLBACK = "FALLBACK"  # what an accelerator cannot run is left to the CPU
WIDE_BAND = "WIDE_BAND"  # of a latency table, on any device: predictions too unsure for a search
REMEDIES = {
    LOW_BATTERY: "charge the phone",
    HOT: "let the phone cool: take it out of its case, off the charger, out of the sun",
    THROTTLED: "let the phone cool for some minutes",
    LOW_POWER_MODE: "switch off the battery saver",
    EMULATOR: "use a phone: an emulator's latencies are those of this computer",
    CLOCK_DROPPED: "let the phone cool, then measure again",
    CLOCK_LIMITED: "let the phone cool, and end the power or game mode that limits its clocks",
    BUSY: "end the other programs and run the same command again, which measures anew; or pass --waive BUSY",
    FALLBACK: "measure the CPU, or take the operators that the GPU cannot run out of the network",
    WIDE_BAND: "close other programs, let the device cool down and run `amc-mobile profile --workspace DIR`",
}
POLL_S = 10.0
CAP_POLL_S = 2.0
CLOCK_TOLERANCE = 0.01
OnWait = Callable[[Mapping[str, str], float], None]  # the problems waited for the end of, the seconds waited so far


def problems(facts: PhoneFacts, state: PhoneState, profile: DeviceProfile) -> dict[str, str]:
    """What speaks against measuring now: name -> what is wrong, with the values."""
    reasons = dict(thermal_problems(state, profile))
    if state.battery.percent < profile.min_battery_percent:
        reasons[LOW_BATTERY] = f"battery at {state.battery.percent:.0f} %, below {profile.min_battery_percent:g} %"
    if state.low_power_mode:
        reasons[LOW_POWER_MODE] = "the battery saver is on, which lowers the clocks"
    if is_emulator(facts):
        reasons[EMULATOR] = f"{facts.model} is an emulator"
    return reasons


def thermal_problems(state: PhoneState, profile: DeviceProfile, *, cooling: bool = False) -> dict[str, str]:
    """Heat, which goes away with time. `cooling`: the phone was too hot, and is until it is clearly below the limit."""
    reasons = {}
    limit = profile.max_celsius - (profile.hysteresis_celsius if cooling else 0.0)
    if state.thermal is not None and state.thermal.status > 0:
        reasons[THROTTLED] = f"thermal status {state.thermal.status}: Android slows the phone down"
    if state.celsius is not None and state.celsius > limit:
        reasons[HOT] = f"{state.celsius:.1f} C, above {limit:g} C"
    return reasons


def drift(
    before: PhoneState, now: PhoneState, cores: Collection[int], profile: DeviceProfile, *, cooling: bool = False
) -> dict[str, str]:
    """What has come over the phone since `before`: heat, or a lower limit of the clocks of `cores` (empty: any)."""
    reasons = thermal_problems(now, profile, cooling=cooling)
    limits = {policy.cores: policy.scaling_max_khz for policy in before.policies}
    for policy in now.policies:
        used = not cores or set(cores) & set(policy.cores)
        limit = limits.get(policy.cores)
        if used and limit is not None and policy.scaling_max_khz < limit * (1 - CLOCK_TOLERANCE):
            reasons[CLOCK_DROPPED] = (
                f"cores {core_ranges(policy.cores)} may run at {policy.scaling_max_khz // 1000} MHz, before "
                f"{limit // 1000} MHz"
            )
    return reasons


def clock_caps(state: PhoneState, cores: Collection[int]) -> dict[str, int]:
    """The limits in MHz of those of `cores` (empty: any) that may not run as fast as they can, as `4-7` -> 1200.

    A phone whose screen is off may limit them, heat does, the fixed performance mode does, some vendors always do.
    """
    return {
        core_ranges(policy.cores): policy.scaling_max_khz // 1000
        for policy in state.policies
        if (not cores or set(cores) & set(policy.cores))
        and policy.scaling_max_khz < policy.max_khz * (1 - CLOCK_TOLERANCE)
    }


def clock_limits(state: PhoneState, cores: Collection[int], lasting: Mapping[str, int] | None = None) -> dict[str, str]:
    """Whether `cores` (empty: any) have other limits than the `lasting` ones: latencies are not the phone's own."""
    caps, lasting = clock_caps(state, cores), lasting or {}
    built_for = {core_ranges(policy.cores): policy.max_khz // 1000 for policy in state.policies}
    for used in sorted(caps.keys() | lasting.keys()):
        now = caps.get(used, built_for.get(used))
        if used in lasting and now != lasting[used]:
            return {CLOCK_LIMITED: f"cores {used} may run at {now} MHz, when the command began at {lasting[used]} MHz"}
        if used not in lasting:
            return {CLOCK_LIMITED: f"cores {used} may run at {now} MHz, built for {built_for[used]} MHz"}
    return {}


def lasting_caps(
    read_state: Callable[[], PhoneState],
    cores: Collection[int],
    profile: DeviceProfile,
    on_wait: OnWait | None = None,
) -> dict[str, int]:
    """The caps of the clocks that do not go away on a cool phone, as `clock_caps`; empty where they have gone.

    Raises PhoneUnfit after the profile's longest wait when they still change or the phone stays hot.
    """
    began = since = time.monotonic()
    before: dict[str, int] = {}
    while True:
        state = read_state()
        caps, now = clock_caps(state, cores), time.monotonic()
        if not caps:
            return caps
        if caps != before or state.low_power_mode or thermal_problems(state, profile):
            before, since = caps, now
        elif now - since >= profile.cap_wait_s:
            return caps
        reasons = clock_limits(state, cores)
        if now - began >= profile.cooldown_s:
            require_fit(_after(reasons, now - began), ())
        if on_wait:
            on_wait(reasons, now - began)
        time.sleep(min(CAP_POLL_S, profile.cap_wait_s, profile.cooldown_s))


def waiting_stage(reasons: Mapping[str, str]) -> str:
    """What a wait for these problems to end is called in progress lines."""
    return "wait for the phone to cool" if {HOT, THROTTLED} & set(reasons) else "wait for the phone's clocks"


def is_emulator(facts: PhoneFacts) -> bool:
    properties = facts.properties
    return (
        properties.get("ro.kernel.qemu") == "1"
        or properties.get("ro.boot.qemu") == "1"
        or properties.get("ro.hardware") in ("goldfish", "ranchu", "cutf_cvm")
    )


def check_waivers(waived: Collection[str]) -> None:
    """Raises InvalidConfig for names that are no problems of ours."""
    unknown = sorted(set(waived) - set(REMEDIES))
    if unknown:
        raise InvalidConfig(f"unknown problem {unknown[0]!r}", next_step=f"waive one of {', '.join(REMEDIES)}")


def require_fit(reasons: dict[str, str], waived: Collection[str]) -> None:
    """Raises PhoneUnfit naming the problems that are not waived, and what to do about each."""
    left = {name: text for name, text in reasons.items() if name not in waived}
    if left:
        steps = "; ".join(REMEDIES[name] for name in left)
        raise PhoneUnfit(left, next_step=f"{steps}; or measure anyway: {' '.join(f'--waive {name}' for name in left)}")


def wait_until_cool(
    read_state: Callable[[], PhoneState],
    profile: DeviceProfile,
    *,
    waived: Collection[str] = (),
    on_wait: OnWait | None = None,
    problems: Callable[[PhoneState, bool], dict[str, str]] | None = None,
) -> PhoneState:
    """Waits until the phone is neither hot nor throttled, at most `profile.cooldown_s`; returns its last state.

    `on_wait`: called with the problems and the seconds waited so far. `problems`: what else than heat that
    is, given the state and whether the phone was too hot before. Raises PhoneUnfit when the phone stays as it is.
    """
    began = time.monotonic()
    was_hot = False
    while True:
        state = read_state()

        def left(cooling: bool, state: PhoneState = state) -> dict[str, str]:
            every = problems(state, cooling) if problems else thermal_problems(state, profile, cooling=cooling)
            return {name: text for name, text in every.items() if name not in waived}

        reasons = left(was_hot)
        was_hot = was_hot or HOT in reasons
        waited = time.monotonic() - began
        if not reasons:
            return state
        if waited >= profile.cooldown_s:
            if not (reasons := left(False)):  # cool enough, if not as cool as was hoped for
                return state
            require_fit(_after(reasons, waited), waived)
        if on_wait:
            on_wait(reasons, waited)
        time.sleep(max(0.0, min(POLL_S, profile.cooldown_s - waited)))


def _after(reasons: Mapping[str, str], waited_s: float) -> dict[str, str]:
    return {name: f"{text} after {waited_s:.0f} s of waiting" for name, text in reasons.items()}


def phone_lock(serial: str) -> AbstractContextManager[None]:
    """Holds the phone for this process. Raises PhoneBusy naming the process that holds it."""
    return held(
        locks_folder() / f"{phone_file_stem(serial)}.lock",
        lambda holder: PhoneBusy(
            f"the phone {serial} is in use by {holder}",
            next_step="wait for it to finish, or use another phone with --serial",
        ),
    )


HELD_FORMAT_VERSION = 1  # 1: serial, stayed_on, fixed_performance


@dataclass(frozen=True)
class HeldSettings:
    """The settings of a phone as they were. `stayed_on`: Android's number, or "null" where it was never set.

    `fixed_performance`: whether the mode was switched on by us, so that it must be switched off.
    """

    serial: str
    stayed_on: str
    fixed_performance: bool


def note(held: HeldSettings) -> None:
    """Writes down what must be given back, before anything is changed."""
    write_json(_held_path(held.serial), asdict(held), format_version=HELD_FORMAT_VERSION)


def noted(serial: str) -> HeldSettings | None:
    """What an earlier process did not give back to a phone. Raises CorruptFile."""
    path = _held_path(serial)
    if not path.exists():
        return None
    document = read_json(path, format_version=HELD_FORMAT_VERSION)
    stayed_on, fixed = document.get("stayed_on"), document.get("fixed_performance")
    if document.get("serial") != serial or not isinstance(stayed_on, str) or not isinstance(fixed, bool):
        raise CorruptFile(path, "not the settings of this phone", next_step="delete the file")
    return HeldSettings(serial, stayed_on, fixed)


def _held_path(serial: str) -> Path:
    return held_settings_folder() / f"{phone_file_stem(serial)}.json"


FIXED = "fixed_performance"  # Android's sustainable clocks: steadier, but lower than what applications get
UNLOCKED = "unlocked"
MODES = (UNLOCKED, FIXED)
FIXED_PERFORMANCE_SDK = 30
CAPS_FORMAT_VERSION = 1  # 1: caps
RESTORE_TIMEOUT_S = 30.0
_KEEP_ON = "svc power stayon true; input keyevent KEYCODE_WAKEUP || true"
_FIX_PERFORMANCE = "\ncmd power set-fixed-performance-mode-enabled true"
_STAY_ON = "settings {verb} global stay_on_while_plugged_in"


def held_mode(mode: str, sdk: int) -> str:
    """The mode that `clock_mode` holds when asked for `mode`."""
    return FIXED if mode == FIXED and sdk >= FIXED_PERFORMANCE_SDK else UNLOCKED


@contextmanager
def clock_mode(
    adb: AdbPhone, sdk: int, mode: str, *, run: Callable[[str], object] | None = None, at_end: str = ""
) -> Iterator[str]:
    """Holds a clock mode and keeps the screen on: with it off, Android parks all threads on the small cores.

    Yields the mode that holds: Androids below 11 have no fixed performance mode and stay unlocked. Both settings are
    given back at the end, also after an error or Ctrl-C; DeviceError when that fails and nothing else has. What is not
    given back, since the process was killed or the link gone, the next `give_back` does. The caller holds the phone.
    `run`: runs the script that changes the settings, with whatever else the phone is asked in that breath. `at_end`: a
    script that the phone runs after it has got its settings back; whether it fails does not matter.
    """
    give_back(adb)
    stayed_on = adb.shell(_STAY_ON.format(verb="get"), what="reading the screen setting").text.strip()
    held = held_mode(mode, sdk)
    note(HeldSettings(adb.serial, stayed_on, held == FIXED))
    try:
        script = _KEEP_ON + (_FIX_PERFORMANCE if held == FIXED else "")
        if run:
            run(script)
        else:
            adb.shell(script, what="holding the phone's clocks")
        yield held
    except (DeviceDisconnected, DeviceUnavailable):
        raise  # nothing reaches the phone now, and waiting for it again helps nobody
    except BaseException:
        with suppress(DeviceError):  # what ended the measuring says more
            give_back(adb, at_end)
        raise
    give_back(adb, at_end)


def note_caps(serial: str, caps: Mapping[str, int]) -> None:
    """Writes down the limits of a phone's clocks that are always there: as `4-7` -> MHz."""
    write_json(_caps_path(serial), {"caps": dict(caps)}, format_version=CAPS_FORMAT_VERSION)


def noted_caps(serial: str) -> dict[str, int]:
    """What `note_caps` wrote; empty where it wrote nothing, or the file is damaged: then they are measured again."""
    path = _caps_path(serial)
    if path.exists():
        with suppress(InvalidInput, CorruptFile):
            caps = read_json(path, format_version=CAPS_FORMAT_VERSION).get("caps")
            if isinstance(caps, dict) and all(type(mhz) is int for mhz in caps.values()):
                return caps
    return {}


def _caps_path(serial: str) -> Path:
    return clock_caps_folder() / f"{phone_file_stem(serial)}.json"


def give_back(adb: AdbPhone, and_then: str = "") -> None:
    """Gives the phone the settings back that a process changed and has not given back. The caller holds the phone.

    `and_then`: a script that runs in the same breath; its failure is none of this.
    """
    held = noted(adb.serial)
    if held is None:
        return
    has_value = held.stayed_on.isascii() and held.stayed_on.isdecimal()
    script = f"{_STAY_ON.format(verb='put')} {held.stayed_on}" if has_value else _STAY_ON.format(verb="delete")
    if held.fixed_performance:
        script += "\ncmd power set-fixed-performance-mode-enabled false"
    script += f"\ncode=$?\n( {and_then}\n) >/dev/null 2>&1\nexit $code" if and_then else ""
    try:
        adb.shell(script, what="giving the phone its settings back", timeout_s=RESTORE_TIMEOUT_S)
    except DeviceError as error:
        message = f"the phone did not get its settings back: {error.message}"
        raise DeviceError(message, next_step="attach it and run `amc-mobile doctor`, which gives them back") from error
    _held_path(adb.serial).unlink(missing_ok=True)


def give_back_left_over(adb: AdbPhone) -> None:
    """As `give_back`, for callers that do not hold the phone: nothing is done while another process measures on it."""
    if noted(adb.serial) is None:
        return
    with suppress(PhoneBusy), phone_lock(adb.serial):
        give_back(adb)
