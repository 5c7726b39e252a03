"""The manifest as data: what it refuses, and that the runner reads what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_models import needs_compiler
from host_runner import run_on_host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amc_mobile.device.device import Timing
from amc_mobile.device.runner import BenchManifest, BenchModel, BenchPair
from amc_mobile.errors import InvalidConfig

MODEL = BenchModel("m", "m.tflite")
GOOD: dict[str, Any] = {
    "runtime": "tflite", "library": "lib.so", "threads": 1, "deadline_s": 60, "entries": (MODEL,)
}  # fmt: skip


def test_the_text_is_the_contracts() -> None:
    manifest = BenchManifest(
        "litert", "/opt/a b/libLiteRt.so", 2, 90,
        (MODEL, BenchPair(BenchModel("before", "a b.tflite"), BenchModel("after", "/c.tflite"))),
        Timing(10, 0.25, 5, 1.5, 3), runtime_version="2.3.0", cores="4-5,7",
    )  # fmt: skip
    assert manifest.text() == (
        "amc_bench_manifest 1\nruntime litert\nlibrary /opt/a b/libLiteRt.so\nruntime_version 2.3.0\ncores 4-5,7\n"
        "threads 2\ndeadline_s 90\nwarmup_runs 5\nsamples 10\nmin_sample_ms 0.250000\nmax_s 1.500000\nmin_samples 3\n"
        "model m m.tflite\npair before\ta b.tflite\tafter\t/c.tflite\n"
    )
    assert [model.id for model in manifest.models] == ["m", "before", "after"]


def test_models_with_a_timing_of_their_own_are_set_apart() -> None:
    quick = Timing(samples=2)
    entries = (MODEL, BenchModel("a", "a", quick), BenchPair(BenchModel("b", "b", quick), MODEL), MODEL)
    lines = BenchManifest(**{**GOOD, "entries": entries}).text().splitlines()
    assert [line for line in lines if line.startswith(("samples", "model", "pair"))] == [
        "samples 20", "model m m.tflite", "samples 2", "model a a", "pair b\tb\tm\tm.tflite", "samples 20",
        "model m m.tflite",
    ]  # fmt: skip


def test_a_period_is_written_where_it_begins_and_ends() -> None:
    spaced = Timing(samples=2, period_ms=100 / 3)
    entries = (MODEL, BenchModel("a", "a", spaced), BenchModel("b", "b", spaced), MODEL)
    lines = BenchManifest(**{**GOOD, "entries": entries}).text().splitlines()
    assert [line for line in lines if line.startswith(("period_ms", "model"))] == [
        "model m m.tflite", "period_ms 33.333333", "model a a", "model b b", "period_ms 0.000000", "model m m.tflite",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"runtime": "torch"}, {"library": ""}, {"library": "a\nb"}, {"threads": 0}, {"deadline_s": 0}, {"entries": ()},
        {"model_deadline_s": -1},
        {"runtime": "litert"}, {"runtime_version": "1 2"}, {"cores": "4-"}, {"cores": "4\n"}, {"cores": "all"},
        {"graph_path": "graph.onnx"}, {"runtime": "onnxruntime", "graph_path": "a\nb"},
        {"delegate": "gpu"}, {"runtime": "onnxruntime", "delegate": "xnnpack"},
    ],
)  # fmt: skip
def test_what_the_runner_would_refuse_is_refused_here(changed: dict[str, Any]) -> None:
    BenchManifest(**GOOD)
    with pytest.raises(InvalidConfig):
        BenchManifest(**{**GOOD, **changed})


@pytest.mark.parametrize(("id", "path"), [("", "p"), ("a b", "p"), ("é", "p"), ("x" * 81, "p"), ("m\n", "p")])
def test_an_identifier_is_plain(id: str, path: str) -> None:
    with pytest.raises(InvalidConfig, match="identifier"):
        BenchModel(id, path)


@pytest.mark.parametrize("path", ["", "a\tb", "a\nmodel x y", "a\0", "\ud800"])
def test_a_path_cannot_add_a_line(path: str) -> None:
    with pytest.raises(InvalidConfig, match="the path"):
        BenchModel("m", path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"warmup_runs": -1},
        {"max_s": -1.0},
        {"min_sample_ms": float("nan")},
        {"period_ms": 10_001.0},
        {"warmup_s": 61.0},
    ],
)
def test_a_timing_is_in_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        Timing(**{"samples": 1} | wrong)


@needs_compiler
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    paths=st.lists(st.text(st.characters(exclude_characters="\t\n\0", codec="utf-8"), min_size=1), min_size=1),
    timing=st.builds(
        Timing,
        st.integers(1, 9),
        st.floats(0, 1),
        st.integers(0, 9),
        st.floats(0, 1e6),
        st.integers(1, 99),
        period_ms=st.floats(0, 1e4),
    ),
)
def test_the_runner_reads_every_manifest_that_can_be_written(
    paths: list[str], timing: Timing, runner: Path, fake_library: Path, tmp_path: Path
) -> None:
    entries = tuple(BenchModel("m", "/no such folder/" + path) for path in paths)
    manifest = BenchManifest("tflite", str(fake_library), 1, 20, entries, timing)
    run = run_on_host(runner, manifest, tmp_path)
    assert run.exit_code == 0, run.log
    assert len(run.errors) == len(paths)
