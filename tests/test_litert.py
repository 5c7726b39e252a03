"""LiteRT without its remark on stderr, and with everything else that is written there."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import nn

from amc_mobile import formats
from amc_mobile.export.converters import to_tflite

PROGRAM = """
import sys
from pathlib import Path
from amc_mobile.device.host import HostDevice
from amc_mobile.formats import open_tflite

model = Path(sys.argv[1]).read_bytes()
{}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("litert_torch") is None:
        pytest.skip("needs the tflite extra")
    path = tmp_path_factory.mktemp("model") / "m.tflite"
    to_tflite(nn.Conv2d(3, 4, 3), (1, 3, 8, 8), path)
    return path


@pytest.mark.parametrize("use", ["open_tflite(model).invoke()", "HostDevice('tflite').open(model).run()"])
def test_the_delegate_is_not_announced_on_stderr(use: str, model: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(use), str(model)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


class Speaking:
    """Writes to stderr as C++ does while it allocates."""

    def allocate_tensors(self) -> None:
        os.write(formats.STDERR, b"INFO: Created a delegate.\nERROR: tensor 3 is too large.\nINFO: and more\n")
        raise RuntimeError("no tensors")


def test_what_is_no_remark_is_passed_on_also_when_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="no tensors"):
        formats.allocate(Speaking())
    os.write(formats.STDERR, b"after\n")
    assert capfd.readouterr().err == "ERROR: tensor 3 is too large.\nafter\n"
