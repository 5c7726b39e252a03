"""Whether a phone is fit to measure on: named problems, each of which can be waived, and the wait for it to cool."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from amc_mobile.device.conditions import core_ranges
from amc_mobile.device.profile import DeviceProfile
from amc_mobile.errors import InvalidConfig, PhoneUnfit

if TYPE_CHECKING:  # brings adbutils, and every command looks at the names of problems
    from amc_mobile.device.phone_facts import PhoneFacts, PhoneState

LOW_BATTERY = "LOW_BATTERY"
HOT = "HOT"
THROTTLED = "THROTTLED"
LOW_POWER_MODE = "LOW_POWER_MODE"
EMULATOR = "EMULATOR"
CLOCK_DROPPED = "CLOCK_DROPPED"
CLOCK_LIMITED = "CLOCK_LIMITED"
BUSY = "BUSY"  # the only one that is measured beside in any case, and flagged
REMEDIES = {
    LOW_BATTERY: "charge the phone",
    HOT: "let the phone cool: take it out of its case, off the charger, out of the sun",
    THROTTLED: "let the phone cool for some minutes",
    LOW_POWER_MODE: "switch off the battery saver",
    EMULATOR: "use a phone: an emulator's latencies are those of this computer",
    CLOCK_DROPPED: "let the phone cool, then measure again",
    CLOCK_LIMITED: "let the phone cool, and end the power or game mode that limits its clocks",
    BUSY: "end the other programs and run the same command again, which measures anew; or pass --waive BUSY",
}
POLL_S = 10.0
CLOCK_TOLERANCE = 0.01


def problems(facts: PhoneFacts, state: PhoneState, profile: DeviceProfile) -> dict[str, str]:
    """What speaks against measuring now: name -> what is wrong, with the values."""
    found = dict(thermal_problems(state, profile))
    if state.battery.percent < profile.min_battery_percent:
        found[LOW_BATTERY] = f"battery at {state.battery.percent:.0f} %, below {profile.min_battery_percent:g} %"
    if state.low_power_mode:
        found[LOW_POWER_MODE] = "the battery saver is on, which lowers the clocks"
    if is_emulator(facts):
        found[EMULATOR] = f"{facts.model} is an emulator"
    return found


def thermal_problems(state: PhoneState, profile: DeviceProfile) -> dict[str, str]:
    """Those that waiting may mend."""
    found = {}
    if state.thermal is not None and state.thermal.status > 0:
        found[THROTTLED] = f"thermal status {state.thermal.status}: Android slows the phone down"
    if state.celsius is not None and state.celsius > profile.max_celsius:
        found[HOT] = f"{state.celsius:.1f} C, above {profile.max_celsius:g} C"
    return found


def drift(before: PhoneState, now: PhoneState, cores: Collection[int], profile: DeviceProfile) -> dict[str, str]:
    """What has come over the phone since `before`: heat, or a lower limit of the clocks of `cores` (empty: any)."""
    found = thermal_problems(now, profile)
    limits = {policy.cores: policy.scaling_max_khz for policy in before.policies}
    for policy in now.policies:
        used = not cores or set(cores) & set(policy.cores)
        limit = limits.get(policy.cores)
        if used and limit is not None and policy.scaling_max_khz < limit * (1 - CLOCK_TOLERANCE):
            found[CLOCK_DROPPED] = (
                f"cores {core_ranges(policy.cores)} may run at {policy.scaling_max_khz // 1000} MHz, before "
                f"{limit // 1000} MHz"
            )
    return found


def clock_limits(state: PhoneState, cores: Collection[int]) -> dict[str, str]:
    """Whether `cores` (empty: any) may not run as fast as they can: a latency measured so is not the phone's own.

    A phone whose screen is off may limit them, and the fixed performance mode does.
    """
    found = {}
    for policy in state.policies:
        used = not cores or set(cores) & set(policy.cores)
        if used and policy.scaling_max_khz < policy.max_khz * (1 - CLOCK_TOLERANCE):
            found[CLOCK_LIMITED] = (
                f"cores {core_ranges(policy.cores)} may run at {policy.scaling_max_khz // 1000} MHz, built for "
                f"{policy.max_khz // 1000} MHz"
            )
    return found


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


def require_fit(found: dict[str, str], waived: Collection[str]) -> None:
    """Raises PhoneUnfit naming the problems that are not waived, and what to do about each."""
    left = {name: text for name, text in found.items() if name not in waived}
    if left:
        steps = "; ".join(REMEDIES[name] for name in left)
        raise PhoneUnfit(left, next_step=f"{steps}; or measure anyway: {' '.join(f'--waive {name}' for name in left)}")


def wait_until_cool(
    read_state: Callable[[], PhoneState],
    profile: DeviceProfile,
    *,
    waived: Collection[str] = (),
    on_wait: Callable[[PhoneState, float], None] | None = None,
    poll_s: float | None = None,
    problems: Callable[[PhoneState], dict[str, str]] | None = None,
) -> PhoneState:
    """Waits until the phone is neither hot nor throttled, at most `profile.cooldown_s`; returns its last state.

    `on_wait`: told the state and the seconds waited so far. `problems`: what else to wait for the end of, instead of
    heat. Raises PhoneUnfit when the phone stays as it is.
    """
    began = time.monotonic()
    while True:
        state = read_state()
        every = problems(state) if problems else thermal_problems(state, profile)
        found = {name: text for name, text in every.items() if name not in waived}
        waited = time.monotonic() - began
        if not found:
            return state
        if waited >= profile.cooldown_s:
            require_fit({name: f"{text} after {waited:.0f} s of waiting" for name, text in found.items()}, waived)
        if on_wait:
            on_wait(state, waited)
        time.sleep(min(POLL_S if poll_s is None else poll_s, profile.cooldown_s - waited))
