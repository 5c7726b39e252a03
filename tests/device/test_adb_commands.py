"""Commands and files through the real adb server, on a phone that behaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from phone_fake.phone import FakePhone

from amc_mobile.device.adb import AdbPhone
from amc_mobile.errors import PhoneCommandFailed


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
