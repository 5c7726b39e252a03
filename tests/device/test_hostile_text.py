"""What a phone says reaches a terminal, which obeys escape sequences: none gets there."""

from __future__ import annotations

import pytest
from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.cli_options import show, show_error
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.phone import select_phone
from amc_mobile.device.phone_output import phone_text, visible
from amc_mobile.device.phone_state import read_facts
from amc_mobile.device.profiles import load_profiles
from amc_mobile.errors import DeviceUnavailable, PhoneCommandFailed

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


def test_texts_and_errors_are_shown_without_what_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    """A table may come from a stranger."""
    show(f"device Pixel{ESCAPE}", {"device": f"Pixel{ESCAPE}"}, as_json=False)
    show("", {"device": f"Pixel{ESCAPE}"}, as_json=True)
    show_error(f"device{ESCAPE}", f"next{ESCAPE}")
    said = capsys.readouterr()
    assert visible(said.out + said.err) == said.out + said.err
