"""adb: quoting, commands and files on a phone that behaves, and each fault, which is named within its deadline."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.device.adb import AdbPhone, AdbServer, choose_phone, command_line, quote
from amc_mobile.errors import (
    AmbiguousDevice,
    DeadlineExceeded,
    DeviceDisconnected,
    DeviceError,
    DeviceUnauthorized,
    DeviceUnavailable,
    InvalidInput,
    PhoneCommandFailed,
    PhoneDiskFull,
)

SHELLS = [shell for shell in ("sh", "mksh", "bash", "busybox") if shutil.which(shell)]
HOSTILE = [
    "",
    " ",
    "a b",
    "it's",
    '"',
    ";id",
    "$(id)",
    "`id`",
    "~",
    "~root",
    "=cat",
    "a\nb",
    "\\",
    "*",
    "-n",
    "%1",
    "{a,b}",
    "é",
]
WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), min_size=1, max_size=40)


def words_seen_by(shell: str, line: str) -> list[str]:
    """What a shell makes of `line`, as the arguments of a program."""
    program = [shell, "sh", "-c"] if shell == "busybox" else [shell, "-c"]
    done = subprocess.run([*program, f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS)
def test_hostile_words_arrive_as_they_are(shell: str) -> None:
    assert words_seen_by(shell, command_line(*HOSTILE)) == HOSTILE


@settings(max_examples=1000, deadline=None)
@given(WORDS)
def test_any_words_arrive_as_they_are(words: list[str]) -> None:
    assert words_seen_by("sh", command_line(*words)) == words


def test_plain_words_stay_readable() -> None:
    assert command_line("getprop", "ro.product.model", "a b") == "getprop ro.product.model 'a b'"


def test_a_nul_cannot_be_quoted() -> None:
    with pytest.raises(InvalidInput, match="NUL"):
        quote("a\0b")


def test_a_command_gives_its_output(adb: AdbPhone) -> None:
    assert adb.run("echo", "two  blanks", "$(id)", "it's") == "two  blanks $(id) it's\n"


def test_streams_and_exit_code_are_kept_apart(adb: AdbPhone) -> None:
    output = adb.shell("printf out; echo err >&2; exit 7", what="a failing script", check=False)
    assert (output.stdout, output.stderr, output.exit_code) == (b"out", "err\n", 7)


def test_a_failing_command_names_itself_and_its_reason(adb: AdbPhone) -> None:
    with pytest.raises(PhoneCommandFailed, match=r"`cat /nowhere` ended with exit code 1: .*No such file"):
        adb.run("cat", "/nowhere")


def test_output_of_megabytes_arrives_whole(adb: AdbPhone) -> None:
    output = adb.shell("seq 1 400000", what="counting")
    assert output.text == "".join(f"{n}\n" for n in range(1, 400001))


def test_a_file_arrives_whole(adb: AdbPhone, phone: FakePhone, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 9999)
    path = "/data/local/tmp/amc mobile/it's $(here)"
    assert adb.push(source, path, mode=0o755) == source.stat().st_size
    assert phone.sandbox.local(path).stat().st_mode & 0o777 == 0o755
    assert phone.sandbox.local(path).read_bytes() == source.read_bytes()


GRACE_S = 15.0  # far above what is needed, far below a hang: for busy machines


def raises_within(seconds: float, kind: type[DeviceError], call: Callable[[], object]) -> DeviceError:
    """The error, which must come within the call's own limit plus a grace."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        call()
    assert time.monotonic() - began < seconds + GRACE_S
    assert type(caught.value) is kind
    assert caught.value.next_step
    return caught.value


def attached(serial: str) -> AdbPhone:
    server = AdbServer()
    return AdbPhone(server, choose_phone(server.settled_phones(), serial))


def test_a_link_that_breaks_in_an_answer_is_tried_again(adb: AdbPhone, phone: FakePhone) -> None:
    fault = phone.faults.add("disconnect", "seq 1 100000", after_bytes=200_000)
    assert adb.run("seq", "1", "100000").endswith("\n99999\n100000\n")
    assert fault.struck == 1


def test_a_broken_link_without_retry_is_an_error_not_half_an_answer(adb: AdbPhone, phone: FakePhone) -> None:
    phone.faults.add("disconnect", "seq 1 100000", after_bytes=200_000)
    raises_within(20, DeviceDisconnected, lambda: adb.shell("seq 1 100000", what="counting", retry=False))
    adb.wait_until_back(20)
    assert adb.shell("seq 1 100000", what="counting", retry=False).text.endswith("\n100000\n")


def test_a_shell_that_ends_without_exit_code_is_no_empty_answer(adb: AdbPhone, phone: FakePhone) -> None:
    phone.faults.add("close", "echo hello", after_bytes=10, times=9)
    raises_within(20, DeviceDisconnected, lambda: adb.run("echo", "hello"))
    phone.faults.mend()
    assert adb.run("echo", "hello") == "hello\n"


def test_an_unplugged_phone_is_waited_for_and_then_named(adb: AdbPhone, phone: FakePhone) -> None:
    phone.unplug()
    error = raises_within(2, DeviceDisconnected, lambda: adb.shell("echo hello", what="hello", timeout_s=2))
    assert phone.serial in error.message
    phone.plug_in()
    adb.wait_until_back(20)
    assert adb.run("echo", "hello") == "hello\n"


def test_a_phone_that_comes_back_in_time_is_no_error(adb: AdbPhone, phone: FakePhone) -> None:
    phone.unplug()
    timer = threading.Timer(0.5, phone.plug_in)
    timer.start()
    assert adb.shell("echo hello", what="hello", timeout_s=30).text == "hello\n"
    timer.join()


@pytest.mark.parametrize("kind", ["stall", "drip"])
def test_the_deadline_holds_for_the_whole_command(adb: AdbPhone, phone: FakePhone, kind: str) -> None:
    phone.faults.add(kind, "seq 1 10000", after_bytes=0 if kind == "drip" else 30)
    error = raises_within(1, DeadlineExceeded, lambda: adb.shell("seq 1 10000", what="counting", timeout_s=1))
    assert "counting: not done within 1 s" in error.message
    phone.faults.mend()
    assert adb.run("seq", "1", "10000").endswith("\n10000\n")


def test_what_ran_past_its_deadline_is_killed_on_the_phone(adb: AdbPhone, phone: FakePhone) -> None:
    raises_within(1, DeadlineExceeded, lambda: adb.shell("sleep 77 & sleep 78", what="sleeping", timeout_s=1))
    end = time.monotonic() + GRACE_S
    while phone.sandbox.processes() and time.monotonic() < end:
        time.sleep(0.05)
    assert phone.sandbox.processes() == []


def test_a_phone_that_stalls_altogether_does_not_hang_us(
    adb: AdbPhone, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model"
    source.write_bytes(bytes(3_000_000))
    phone.faults.add("stall", times=99)
    raises_within(2, DeadlineExceeded, lambda: adb.shell("echo hello", what="hello", timeout_s=1))
    with monkeypatch.context() as patch:
        patch.setattr("amc_mobile.device.adb.TRANSFER_TIMEOUT_S", 1)
        raises_within(2, DeadlineExceeded, lambda: adb.push(source, "/data/local/tmp/model"))
    phone.faults.mend()
    assert adb.push(source, "/data/local/tmp/model") == 3_000_000


def test_a_push_that_is_cut_is_made_again(adb: AdbPhone, phone: FakePhone, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(bytes(range(256)) * 9999)
    phone.faults.add("disconnect", "cat >", after_bytes=1_000_000)
    adb.push(source, "/data/local/tmp/model")
    assert phone.sandbox.local("/data/local/tmp/model").read_bytes() == source.read_bytes()


def test_a_full_disk_is_named(adb: AdbPhone, phone: FakePhone, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(bytes(3_000_000))
    phone.sandbox.free_bytes = 1_000_000
    error = raises_within(20, PhoneDiskFull, lambda: adb.push(source, "/data/local/tmp/model"))
    assert error.message == "the phone has 0 MiB free: /data/local/tmp/model does not fit"
    phone.sandbox.free_bytes = 10_000_000
    assert adb.push(source, "/data/local/tmp/model") == 3_000_000


def test_garbage_before_the_output_is_left_out(adb: AdbPhone, phone: FakePhone) -> None:
    phone.faults.add("garbage", "echo hello")
    assert adb.run("echo", "hello") == "hello\n"


def test_an_unauthorized_phone_is_told_apart(new_phone: Callable[..., FakePhone], adb_server: PrivateAdbServer) -> None:
    phone = new_phone(attach=False)
    phone.become("unauthorized")
    adb_server.attach(phone)
    wait_for(lambda: adb_server.state_of(phone) == "unauthorized")  # on a busy computer it is offline at first
    error = raises_within(5, DeviceUnauthorized, lambda: attached(phone.serial))
    assert "accept the dialog" in error.next_step
    phone.become("device")
    adb_server.detach(phone)
    adb_server.attach(phone)
    assert attached(phone.serial).run("echo", "hello") == "hello\n"


def test_a_phone_that_loses_its_authorization_is_not_waited_for(adb: AdbPhone, phone: FakePhone) -> None:
    phone.become("unauthorized")
    raises_within(5, DeviceUnauthorized, lambda: adb.shell("echo hello", what="hello", timeout_s=30))


def test_an_offline_phone_is_told_apart(new_phone: Callable[..., FakePhone], adb_server: PrivateAdbServer) -> None:
    phone = new_phone(attach=False)
    phone.become("offline")
    connecting = threading.Thread(target=adb_server.attach, args=(phone,))
    connecting.start()
    end = time.monotonic() + GRACE_S
    while not (seen := [p for p in AdbServer().phones() if p.serial == phone.serial]) and time.monotonic() < end:
        time.sleep(0.05)
    error = raises_within(5, DeviceUnavailable, lambda: attached(phone.serial))
    assert f"adb says {seen[0].state}" in error.message
    phone.become("device")
    connecting.join()


def test_a_phone_without_shell_v2_is_refused(new_phone: Callable[..., FakePhone], adb_server: PrivateAdbServer) -> None:
    phone = new_phone(attach=False)
    phone.features = "cmd,stat_v2"
    adb_server.attach(phone)
    error = raises_within(5, DeviceUnavailable, lambda: attached(phone.serial).run("echo", "hello"))
    assert "shell protocol v2" in error.message


def test_an_unknown_serial_lists_what_adb_sees(phone: FakePhone) -> None:
    error = raises_within(5, DeviceUnavailable, lambda: attached("R5CT1234"))
    assert f"{phone.serial} (device)" in error.message


def test_a_killed_adb_server_is_started_again(
    tmp_path: Path, new_phone: Callable[..., FakePhone], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_server = PrivateAdbServer(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(own_server.port))
    monkeypatch.setenv("ADB_MDNS", "0")
    try:
        phone = new_phone(attach=False)
        own_server.attach(phone)
        adb = attached(phone.serial)
        own_server.kill()
        assert adb.run("echo", "hello") == "hello\n"
    finally:
        own_server.stop()


def test_without_an_adb_program_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adb_server: PrivateAdbServer
) -> None:
    monkeypatch.setenv("ADBUTILS_ADB_PATH", str(tmp_path / "no-adb"))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "9")
    error = raises_within(5, DeviceUnavailable, lambda: AdbServer().phones())
    assert "platform-tools" in error.next_step


def test_two_phones_with_one_serial_are_not_mixed_up(phone: FakePhone) -> None:
    found = [p for p in AdbServer().phones() if p.serial == phone.serial]
    error = raises_within(5, AmbiguousDevice, lambda: choose_phone(found * 2, phone.serial))
    assert phone.serial in error.message
