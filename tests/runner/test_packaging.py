"""The wheel carries the runner for phones and the profiles of phones."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bench_models import needs_compiler

ROOT = Path(__file__).parents[2]
RUNNER = "amc_mobile/device/bin/arm64-v8a/amc-bench"
needs_ziglang = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the package ziglang")


def build_wheel(folder: Path, target: str = "wheel", *, hide_ziglang: bool = False) -> tuple[Path, str]:
    """The wheel, and what building it printed."""
    hide = "sys.modules['ziglang'] = None\n" if hide_ziglang else ""
    program = f"import sys\n{hide}from hatchling.cli import hatchling\nsys.exit(hatchling())"
    done = subprocess.run(
        [sys.executable, "-c", program, "build", "-t", target, "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.iterdir()  # and nothing beside it
    return wheel, done.stdout + done.stderr


@needs_ziglang
@needs_compiler
def test_the_wheel_brings_the_phones_runner_and_the_profiles(tmp_path: Path) -> None:
    wheel, _ = build_wheel(tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(RUNNER)[:4] == b"\x7fELF"
        assert archive.getinfo(RUNNER).external_attr >> 16 & 0o111
        archive.extractall(tmp_path / "installed")
    program = (
        "from amc_mobile.device import profiles, runner\n"
        "print(runner.packaged_runner())\n"
        "print(profiles.BUILT_IN, *sorted(profiles.load_profiles()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    packaged, profiles, *names = done.stdout.split()
    assert packaged == str(tmp_path / "installed" / RUNNER)
    assert profiles == str(tmp_path / "installed" / "amc_mobile" / "device_profiles")
    assert names == sorted(path.stem for path in (ROOT / "device_profiles").glob("*.toml"))


def test_without_ziglang_the_wheel_is_built_without_the_runner_and_says_so(tmp_path: Path) -> None:
    wheel, printed = build_wheel(tmp_path / "dist", hide_ziglang=True)
    assert "this wheel carries no runner for phones" in printed
    with zipfile.ZipFile(wheel) as archive:
        assert RUNNER not in archive.namelist()
        assert "amc_mobile/py.typed" in archive.namelist()


def test_an_editable_installation_builds_nothing(tmp_path: Path) -> None:
    wheel, printed = build_wheel(tmp_path / "dist", "wheel:editable", hide_ziglang=True)
    assert "runner" not in printed
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "bench" in name or "device_profiles" in name]
