"""The command line inside this process, so that its parts can be watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bench_device import NETWORK, Bench
from in_process import CommandLine

Amc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Templates that the tests share, since exports take seconds."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def amc(
    bench: Bench, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Amc:
    """Runs the command line in a folder of its own, with the network profiled on the bench; (exit code, out, err)."""
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "amc-workspace").mkdir()
    (tmp_path / "amc-workspace/templates").symlink_to(exports, target_is_directory=True)
    monkeypatch.setattr("amc_mobile.workflows.profile.device_of", lambda *_: bench)
    monkeypatch.setattr("amc_mobile.workflows.export.device_of", lambda *_: bench)

    run = CommandLine(tmp_path, monkeypatch, capsys)
    code, _, err = run("profile", "--runtime", "onnxruntime", "--model", "net.py:build", "--input-size", "32",
                       "--data", "digits", "--quiet")  # fmt: skip
    assert code == 0, err
    return run


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """command(*words) runs a command in `tmp_path`; gives its output, or "exit CODE: " and what it said on stderr."""
    line = CommandLine(tmp_path, monkeypatch, capsys)

    def run(*words: str) -> str:
        code, out, err = line(*words, "--quiet" if words[0] != "report" else "--json")
        return out if not code else f"exit {code}: {err}"

    return run
