"""The parsers of phone output, on texts in the phones' forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from device.benchmark_model_texts import CLASSIC, LITERT
from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.cli_options import show, show_error
from amc_mobile.device import phone_output as out
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.benchmark_model import parse_benchmark_model
from amc_mobile.device.phone import select_phone
from amc_mobile.device.phone_output import phone_text, visible
from amc_mobile.device.phone_state import read_facts
from amc_mobile.device.profiles import load_profiles
from amc_mobile.errors import DeviceUnavailable, PhoneCommandFailed, PhoneOutputInvalid

STATE = Path(__file__).parent.parent / "phone_fake" / "state" / "pixel_8"
POLICIES = (STATE / "cpufreq.txt").read_text()
DF = "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/block/a_long_name\n  900 500 400 56% /data\n"


def test_properties_may_hold_line_ends_and_brackets() -> None:
    properties = out.parse_properties((STATE / "getprop.txt").read_text() + "[a.b]: [x]: [y]]\n[empty]: []\n")
    assert properties["ro.product.model"] == "Pixel 8"
    assert properties["sys.multi"] == "a first line\nand a second"
    assert properties["a.b"] == "x]: [y]"
    assert properties["empty"] == ""


def test_core_lists_of_both_forms() -> None:
    assert out.parse_core_list("0-2,5") == (0, 1, 2, 5)
    assert out.parse_core_list("4 5 6 7\n") == (4, 5, 6, 7)
    assert out.parse_allowed_cores("Name:\tx\nCpus_allowed:\t30\nCpus_allowed_list:\t4-5\n") == (4, 5)


def test_policies_come_slowest_first_with_their_present_limit() -> None:
    slow, middle, fast = out.parse_cpu_policies(
        POLICIES.replace("policy8/scaling_max_freq:2900000", "policy8/scaling_max_freq:1200000")
    )
    assert (slow.cores, middle.cores, fast.cores) == ((0, 1, 2, 3), (4, 5, 6, 7), (8,))
    assert (fast.max_khz, fast.scaling_max_khz, fast.governor) == (2900000, 1200000, "sched_pixel")


def test_a_processor_has_the_name_that_the_kernel_tells() -> None:
    assert out.parse_processor_name((STATE / "cpuinfo.txt").read_text()) == ""
    assert out.parse_processor_name("processor : 0\nHardware :\nmodel name : Abacus 9\n") == "Abacus 9"


def test_only_present_temperatures_of_real_sensors_count() -> None:
    thermal = out.parse_thermal((STATE / "dumpsys_thermalservice.txt").read_text())
    assert thermal.status == 0
    assert thermal.hottest_celsius(out.CPU_TYPE) == 31.5
    assert thermal.hottest_celsius(out.SKIN_TYPE) == 27.5
    assert thermal.hottest_celsius(out.NPU_TYPE) is None
    assert {t.name for t in thermal.temperatures} == {"BIG", "LITTLE", "G3D", "VIRTUAL-SKIN", "battery"}


def test_a_phone_without_thermal_hal_has_a_status_and_no_temperatures() -> None:
    thermal = out.parse_thermal("Thermal Status: 2\nCached temperatures:\nHAL Ready: false\n")
    assert thermal == out.ThermalState(2, ())


def test_battery_temperature_is_in_tenths() -> None:
    battery = out.parse_battery((STATE / "dumpsys_battery.txt").read_text())
    assert battery == out.BatteryState(77.0, 26.5)


def test_free_space_when_the_line_is_broken_in_two() -> None:
    assert out.parse_free_bytes(DF) == 400 * 1024


def test_both_formats_of_benchmark_model_mean_the_same() -> None:
    classic, litert = parse_benchmark_model(CLASSIC), parse_benchmark_model(LITERT)
    assert (
        (classic.init_ms, classic.first_ms, classic.runs)
        == (1.5, 0.9, 50)
        == (litert.init_ms, litert.first_ms, litert.runs)
    )
    assert (classic.average_ms, classic.min_ms, classic.max_ms) == (0.42525, 0.4025, 0.48)
    assert (litert.average_ms, litert.min_ms, litert.max_ms) == (0.43, 0.40, 0.48)


def test_equal_samples_are_no_latency_of_zero() -> None:
    text = (
        "count=50 curr=3(all same)\n"
        "Inference timings in us: Init: 9, First inference: 3, Warmup (avg): 3, Inference (avg): 3\n"
    )
    result = parse_benchmark_model(text)
    assert (result.average_ms, result.min_ms, result.max_ms) == (0.003, 0.003, 0.003)


@pytest.mark.parametrize(
    ("parse", "text", "named"),
    [
        (out.parse_properties, "error: device offline", "getprop"),
        (out.parse_core_list, "0-99999", "cores"),
        (out.parse_core_list, "5-3", "cores"),
        (out.parse_cpu_policies, "policy0/related_cpus:0\n", "cpufreq/policy0"),
        (out.parse_cpu_policies, POLICIES.replace("4 5 6 7", "3 4 5 6 7"), "two policies"),
        (out.parse_processor_name, "", "cpuinfo"),
        (out.parse_thermal, "Can't find service: thermalservice", "thermalservice"),
        (out.parse_battery, "level: 900\nscale: 100", "900 of 100"),
        (out.parse_battery, "level: many", "level"),
        (out.parse_free_bytes, "df: /data: No such file", "df"),
        (parse_benchmark_model, "STARTING!\nSegmentation fault", "did not finish"),
        (parse_benchmark_model, CLASSIC.replace("(avg): 425.25", "(avg): 0"), "impossible"),
    ],
)
def test_what_cannot_be_read_names_its_source(parse: Callable[[str], object], text: str, named: str) -> None:
    with pytest.raises(PhoneOutputInvalid, match=named):
        parse(text)


def test_the_screen_is_what_the_power_manager_says() -> None:
    assert out.parse_wakefulness("Power Manager State:\n  mWakefulness=Awake\n") == "Awake"
    assert out.parse_wakefulness("  mWakefulness=Dozing\r\n") == "Dozing"
    for text in ("", "mWakefulnessChanging=false", "mWakefulness=\x1b[31m", "Can't find service: power"):
        assert out.parse_wakefulness(text) == ""


ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"


def test_text_of_a_phone_is_harmless_when_it_comes_in(adb: AdbPhone) -> None:
    printed = adb.shell(r"printf 'a\033[31mb\rc\tOK\n'; printf '\033[2Jbad' >&2", what="printing").text
    assert printed == "a?[31mb?c\tOK\n"
    with pytest.raises(PhoneCommandFailed, match=r"\?\[2Jbad") as caught:
        adb.shell(r"printf '\033[2Jbad' >&2; exit 3", what="failing")
    assert "\x1b" not in caught.value.message + caught.value.stderr


def test_a_models_name_commands_no_terminal(adb: AdbPhone, phone: FakePhone, adb_server: PrivateAdbServer) -> None:
    phone.sandbox.edit("getprop.txt", "[Pixel 8]", f"[Pixel 8{ESCAPE}\nerror: fake]")
    facts = read_facts(adb)
    assert facts.model == visible(facts.model) == "Pixel 8?]0;owned??[2J??31m error: fake"
    profiles = load_profiles()
    with pytest.raises(DeviceUnavailable) as caught:
        select_phone(profiles["galaxy"], profiles, serial=phone.serial)
    assert caught.value.message == visible(caught.value.message)
    assert "\n" not in caught.value.message


def test_line_ends_of_all_shells_are_one() -> None:
    assert phone_text(b"a\r\nb\tc\r\xff\n") == "a\nb\tc?\ufffd\n"


class HostileResult:
    def text(self) -> str:
        return f"device Pixel{ESCAPE}"

    def document(self) -> dict[str, str]:
        return {"device": f"Pixel{ESCAPE}"}


def test_texts_and_errors_are_shown_without_what_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    """A table may come from a stranger."""
    for as_json in (False, True):
        show(HostileResult(), as_json=as_json)
    show_error(f"device{ESCAPE}", f"next{ESCAPE}")
    said = capsys.readouterr()
    assert visible(said.out + said.err) == said.out + said.err
