"""Which attached phone `--device NAME` and `--serial` mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amc_mobile.device.adb import AdbPhone, choose_phone
from amc_mobile.device.adb_server import AdbServer
from amc_mobile.device.attached_phone import AttachedPhone, remedy
from amc_mobile.device.phone_facts import read_properties
from amc_mobile.device.profile import DeviceProfile, matching_profiles
from amc_mobile.errors import AmbiguousDevice, DeviceError, DeviceUnavailable

USE_HOST = "or pass --device host to measure on this computer"


def select_phone(
    profile: DeviceProfile,
    profiles: Mapping[str, DeviceProfile],
    *,
    serial: str | None = None,
    server: AdbServer | None = None,
) -> AdbPhone:
    """The one attached phone that fits the profile, or the one with `serial`.

    Raises AmbiguousDevice listing the candidates, DeviceUnavailable saying what adb sees and how to mend each.
    """
    server = server or AdbServer()
    attached = server.settled_phones()
    if serial is not None:
        chosen = choose_phone(attached, serial)
        adb = AdbPhone(server, chosen)
        answered = read_properties(adb)
        if not profile.fits(answered):
            raise _no_fit(profile, [(chosen, answered)], profiles)
        return adb
    fitting: list[AdbPhone] = []
    others: list[tuple[AttachedPhone, Mapping[str, str]]] = []
    failures: list[DeviceError] = []
    for phone in attached:
        try:
            adb = AdbPhone(server, phone)
            properties: Mapping[str, str] = read_properties(adb)
        except DeviceError as error:  # another phone may still fit
            failures.append(error)
            properties = {}
        if profile.fits(properties):
            fitting.append(adb)
        else:
            others.append((phone, properties))
    if len(fitting) > 1:
        raise AmbiguousDevice(
            f"{len(fitting)} attached phones fit --device {profile.name}: {', '.join(p.serial for p in fitting)}",
            next_step=f"choose one: --serial {fitting[0].serial}",
        )
    if fitting:
        return fitting[0]
    if len(attached) == 1 and failures:
        raise failures[0]
    raise _no_fit(profile, others, profiles)


def _no_fit(
    profile: DeviceProfile,
    seen: Sequence[tuple[AttachedPhone, Mapping[str, str]]],
    profiles: Mapping[str, DeviceProfile],
) -> DeviceUnavailable:
    if not seen:
        return DeviceUnavailable(
            f"no phone is attached for --device {profile.name}: adb sees none",
            next_step="plug a phone in, switch on USB debugging in its developer options and accept its dialog; "
            f"{USE_HOST}",
        )
    lines, steps = [], []
    for phone, properties in seen:
        if phone.is_ready:
            fitting = matching_profiles(profiles, properties)
            model = " ".join(properties.get("ro.product.model", "a phone that does not answer").split())
            lines.append(f"{phone.serial}: {model}" + (f", which is {fitting[0].name}" if fitting else ""))
            steps += [f"--device {fitting[0].name}"] if fitting else []
        else:
            lines.append(f"{phone.serial}: {phone.state}")
            steps.append(f"{phone.serial}: {remedy(phone.state)}")
    return DeviceUnavailable(
        f"no attached phone fits --device {profile.name} ({profile.summary}); adb sees {'; '.join(lines)}",
        next_step="; ".join([*dict.fromkeys(steps), USE_HOST]),
    )
