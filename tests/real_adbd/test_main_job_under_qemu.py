"""The whole job with the phone's executable and the real arm64 runtimes under qemu, behind the real adbd.

The latencies mean nothing; that every step goes the way it goes on a phone does.
"""

from __future__ import annotations

from pathlib import Path

import adbd_sandbox
import arm64_sandbox
import pytest
from adbd_sandbox import RealAdbd
from command_line import CommandLine
from main_job import run_main_job
from phone_suite import run_phone_suite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(adbd_sandbox.missing()), reason=adbd_sandbox.missing() or "complete"),
]
FOLDER = "/data/local/tmp/amc-mobile"


@pytest.mark.parametrize(("runtime", "pattern"), [("tflite", "libLiteRt.so"), ("onnxruntime", "libonnxruntime.so.*")])
def test_the_main_job_runs_behind_the_real_adbd(runtime: str, pattern: str, amc: CommandLine, phone: RealAdbd) -> None:
    if not list(arm64_sandbox.LIBRARIES.glob(pattern)):
        pytest.skip(f"no {pattern} in {arm64_sandbox.LIBRARIES}: {arm64_sandbox.FETCH}")
    if runtime == "tflite":
        pytest.importorskip("litert_torch")
    # Exit code 1: these libraries are built for Linux computers, though they run on this phone.
    (examined,) = amc.document("doctor", "--runtime", runtime, codes=(1,))["phones"]
    assert set(examined["trials"].values()) == {"ran"}
    assert {problem["name"] for problem in examined["problems"]} - {"BUSY"} == {"FOREIGN_RUNTIME"}
    run_main_job(amc, runtime, "--device", "pixel", "--serial", phone.serial)
    left = sorted(path.name for path in phone.sandbox.local(FOLDER).iterdir())
    assert all(name.startswith("keep-") for name in left), left


def test_the_suite_for_real_phones_passes_behind_the_real_adbd(phone: RealAdbd, home: Path) -> None:
    libraries = len(list(home.glob("runtimes/*/library.json")))
    variables = {"AMC_MOBILE_HOME": str(home), "AMC_MOBILE_RUNNER": str(home / "amc-bench")}
    passed = run_phone_suite(phone.serial, "-k", "not main_job and not one_latency", **variables)
    assert passed == 4 + libraries
