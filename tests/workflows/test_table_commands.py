"""verify, adopt and plot through the command line, on a device whose speed the test sets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from amc_mobile.cli import main
from amc_mobile.device.conditions import Conditions
from amc_mobile.device.timing import Job, SamplesMs
from amc_mobile.latency.adoption import ANCHORS
from amc_mobile.latency.table import LatencyTable

NETWORK = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
CONDITIONS = Conditions(
    device="bench", soc="Abacus 9", os="One 1", runtime="onnxruntime", runtime_version="1.0", library_sha256="ab",
    delegate="CPU", threads=1, cores="0", clock_mode="fixed",
)  # fmt: skip
Amc = Callable[..., tuple[int, str, str]]


def conv_ms(in_channels: int, out_channels: int) -> float:
    """As if output channels were filled up to the next multiple of 16."""
    return 0.05 + in_channels * (-(-out_channels // 16) * 16) * 1e-3


@dataclass
class Bench:
    """A device that takes `slowdown(label)` times what `conv_ms` says."""

    now: Conditions = CONDITIONS
    slowdown: Callable[[str], float] = lambda label: 1.0
    jobs_per_batch: int = 1

    def conditions(self) -> Conditions:
        return self.now

    def session(self) -> nullcontext[None]:
        return nullcontext()

    def passes(self, jobs: Sequence[Job]) -> Generator[SamplesMs, None, None]:
        for job in jobs:
            yield (self.ms(job.label) * self.slowdown(job.label),) * job.timing.samples

    def ms(self, label: str) -> float:
        if kernel := re.search(r"Conv.* (\d+)->(\d+) @", label):
            return conv_ms(int(kernel[1]), int(kernel[2]))
        if model := re.search(r"whole model at (\d+) (\d+) channels", label):
            return conv_ms(3, int(model[1])) + conv_ms(int(model[1]), int(model[2])) + 0.05
        return 0.03

    def is_steady(self) -> bool:
        return True

    def settle(self) -> None:
        raise AssertionError("nothing here gets hot")


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Templates that the tests share, since exports take seconds."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def amc(bench: Bench, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> Amc:
    """Runs the command line in a folder of its own, with the network profiled on the bench; (exit code, out, err)."""
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "amc-workspace").mkdir()
    (tmp_path / "amc-workspace/templates").symlink_to(exports, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amc_mobile.workflows.latency_model.open_device", lambda *_: bench)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["amc-mobile", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()  # type: ignore[attr-defined]
        return int(ended.value.code or 0), out, err

    code, _, err = run("profile", "--runtime", "onnxruntime", "--model", "net.py:build", "--input-size", "32",
                       "--data", "digits", "--quiet")  # fmt: skip
    assert code == 0, err
    return run


def kernels(conditions: Conditions) -> dict[str, float]:
    with LatencyTable(Path("amc-workspace/table.sqlite")) as table:
        return {key: kernel.low_ms for key, kernel in table.kernels(conditions).items()}


def test_verify_agrees_with_a_device_that_stayed_the_same_and_stores_nothing(amc: Amc, bench: Bench) -> None:
    before = kernels(CONDITIONS)
    bench.slowdown = lambda label: 1.04
    code, out, err = amc("table", "verify", "--json", "--quiet")
    assert code == 0, err
    verdict = json.loads(out)
    assert verdict["action"] == "accept"
    assert list(verdict["ratios"].values()) == pytest.approx([1.04] * ANCHORS)
    assert len({label.split()[0] for label in verdict["ratios"]}) > 1  # not all of one type
    assert kernels(CONDITIONS) == before


def test_verify_ends_with_exit_1_where_the_device_no_longer_agrees(amc: Amc, bench: Bench) -> None:
    bench.slowdown = lambda label: 1.2
    code, out, err = amc("table", "verify", "--quiet")
    assert (code, out) == (1, "")
    assert "no longer fits this device" in err
    assert "median 1.200" in err


@pytest.mark.parametrize(("change", "shown"), [
    ({"runtime_version": "1.1", "library_sha256": "cd"}, "runtime_version: 1.0 -> 1.1"), ({"os": "One 2"}, "os: One 1"),
])  # fmt: skip
@pytest.mark.parametrize(("slowdown", "ratio"), [(1.03, 1.0), (1.3, 1.3), (0.8, 0.8)])
def test_adopt_takes_over_or_rescales(
    change: dict[str, str], shown: str, slowdown: float, ratio: float, amc: Amc, bench: Bench
) -> None:
    before = kernels(CONDITIONS)
    bench.now, bench.slowdown = replace(CONDITIONS, **change), lambda label: slowdown  # type: ignore[arg-type]
    code, out, err = amc("table", "adopt", "--quiet")
    assert code == 0, err
    assert f"adopted {len(before)} kernels times {ratio:.3f}" in out
    assert shown in out
    assert kernels(bench.now) == pytest.approx({key: ms * ratio for key, ms in before.items()})
    assert kernels(CONDITIONS) == before
    code, _, err = amc("table", "adopt", "--quiet")
    assert code == 1
    assert "already measured" in err
    code, out, err = amc("profile", "--json", "--quiet")  # only whole models are left to measure
    assert code == 0, err
    assert json.loads(out)["conditions"] == bench.now.to_document()
    assert kernels(bench.now) == pytest.approx({key: ms * ratio for key, ms in before.items()})


def test_adopt_gives_up_where_kernels_changed_differently(amc: Amc, bench: Bench) -> None:
    bench.now = replace(CONDITIONS, runtime_version="1.1")
    bench.slowdown = lambda label: 1.5 if "3x3/2" in label else 1.0
    code, out, err = amc("table", "adopt", "--json", "--quiet")
    assert code == 0, err
    verdict = json.loads(out)
    assert (verdict["action"], verdict["adopted"]) == ("rebuild", 0)
    assert kernels(bench.now) == {}
    assert "run `amc-mobile profile`" in amc("table", "adopt", "--quiet")[1]


def test_adopt_refuses_another_processor(amc: Amc, bench: Bench) -> None:
    bench.now = replace(CONDITIONS, soc="Abacus 10")
    code, _, err = amc("table", "adopt", "--quiet")
    assert code == 1
    assert "holds nothing of bench (Abacus 10)" in err


def test_plot_draws_the_measured_points_the_fit_and_its_steps(amc: Amc) -> None:
    code, out, err = amc("table", "plot", "--kernel", "2", "--out", "kernel.svg", "--json", "--quiet")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["steps"]["tile_out"] == 16
    root = ElementTree.parse("kernel.svg").getroot()
    paths = [(one.get("class"), one.get("d") or "") for one in root.iter() if one.tag.endswith("path")]
    points = [pixels(d) for css, d in paths if css and css.startswith("dots")]
    assert sum(len(line) for line in points) == facts["points"]
    lines = [pixels(d) for css, d in paths if css == "fit"]
    names = [one.text for one in root.iter() if one.tag.endswith("text")]
    assert len(lines) == len(points) == sum(str(name).endswith(" in") for name in names)
    across = [x for x, _ in points[0]]
    per_channel = (across[-1] - across[0]) / 48
    assert [16 + (x - across[0]) / per_channel for x in across] == pytest.approx([16, 24, 32, 48, 64], abs=0.02)
    for line, measured in zip(lines, points, strict=True):
        for x, y in measured:
            assert min(abs(y - fit) for at, fit in line if abs(at - x) < 0.1) < 1.0
        rises = [b[0] for a, b in pairwise(line) if a[1] - b[1] > 0.5]
        # The first width beyond a multiple of 16 pays for the next one.
        assert [round(16 + (x - across[0]) / per_channel) for x in rises] == [17, 33, 49]


def test_plot_names_the_kernels_there_are(amc: Amc) -> None:
    code, _, err = amc("table", "plot", "--kernel", "nose", "--quiet")
    assert code == 1
    assert "they are 0, 2" in err


def pixels(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
