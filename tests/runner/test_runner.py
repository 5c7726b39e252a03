"""The runner's own behaviour, with a library whose models say what shall happen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench_models import build_fake_library, needs_compiler, onnx_model, tflite_model
from host_runner import locate_library, run_on_host

from amc_mobile.device.device import Timing
from amc_mobile.device.runner import BenchEnd, BenchManifest, BenchModel, BenchPair

pytestmark = needs_compiler
BRIEF = Timing(warmup_runs=1, samples=3)

Manifest = Callable[..., BenchManifest]


@pytest.fixture
def manifest(fake_library: Path, tmp_path: Path) -> Manifest:
    """manifest("ok", "sleep 5") asks for one pass over a model per text, called m0, m1 and so on."""

    def make(*models: str, timing: Timing = BRIEF) -> BenchManifest:
        entries = []
        for i, text in enumerate(models):
            (tmp_path / f"model {i}").write_text(text)
            entries.append(BenchModel(f"m{i}", f"model {i}"))
        return BenchManifest("tflite", str(fake_library), 2, 20, tuple(entries), timing)

    return make


def test_a_run_tells_what_was_measured_and_under_which_conditions(
    runner: Path, manifest: Manifest, tmp_path: Path
) -> None:
    run = run_on_host(runner, manifest("ok", "ok"), tmp_path)
    assert run.exit_code == 0
    assert run.end == BenchEnd("done", 2, 0, "")
    assert run.start is not None
    assert (run.start.runtime, run.start.runtime_version, run.start.delegate) == ("tflite", "9.8.7", "xnnpack")
    assert (run.start.threads, run.start.cores_wanted) == (2, "")
    assert [result.index for result in run.results] == [0, 1]
    for result in run.results:
        assert (len(result.samples_ms), result.warmup_runs, result.runs_per_sample) == (3, 1, 1)
        assert result.record.peak_rss_kb is not None
        assert 100 < result.record.peak_rss_kb < 1_000_000


def test_a_sample_is_the_mean_of_several_runs_of_a_short_model(
    runner: Path, manifest: Manifest, tmp_path: Path
) -> None:
    run = run_on_host(runner, manifest("sleep 2", timing=replace(BRIEF, min_sample_ms=9)), tmp_path)
    (result,) = run.results
    assert 1 < result.runs_per_sample <= 5  # 9 ms of at least 2 ms each
    assert min(result.samples_ms) >= 2
    assert min(result.record.first_ms, result.record.load_ms) > 0


def test_a_slow_model_stops_sampling_early_but_takes_its_least_number(
    runner: Path, manifest: Manifest, tmp_path: Path
) -> None:
    limited = replace(BRIEF, samples=1000, max_s=0.1, min_samples=2)
    (some,) = run_on_host(runner, manifest("sleep 30", timing=limited), tmp_path).results
    assert 2 <= len(some.samples_ms) <= 4  # more than 0.1 s has passed after four of 30 ms
    (least,) = run_on_host(runner, manifest("sleep 30", timing=replace(limited, min_samples=6)), tmp_path).results
    assert len(least.samples_ms) == 6


def test_runs_at_a_cadence_start_a_period_apart_and_samples_leave_out_the_gaps(
    runner: Path, manifest: Manifest, tmp_path: Path
) -> None:
    spaced = Timing(warmup_runs=2, samples=5, min_sample_ms=9, period_ms=60)
    asked = manifest("sleep 2", "ok", timing=spaced)
    first, second = asked.models
    entries = (first, replace(second, timing=BRIEF))  # a period ends with the timing that it belongs to
    began = time.monotonic()
    run = run_on_host(runner, replace(asked, entries=entries), tmp_path)
    assert time.monotonic() - began >= 0.36
    result, back_to_back = run.results
    assert (len(result.samples_ms), result.warmup_runs, result.runs_per_sample) == (5, 2, 1)
    assert 2 <= min(result.samples_ms) < 60
    assert len(back_to_back.samples_ms) == 3


def test_a_timing_holds_for_the_models_that_follow_it(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    asked = manifest("ok", "ok", "ok")
    first, second, third = asked.models
    entries = (first, replace(second, timing=Timing(warmup_runs=0, samples=7)), third)
    run = run_on_host(runner, replace(asked, entries=entries), tmp_path)
    assert [(len(result.samples_ms), result.warmup_runs) for result in run.results] == [(3, 1), (7, 0), (3, 1)]


def test_the_first_model_of_all_is_warmed_up_for_so_long(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    asked = manifest("sleep 10", "sleep 10", timing=replace(BRIEF, warmup_s=0.2))
    first, second = run_on_host(runner, asked, tmp_path).results
    assert 2 <= first.warmup_runs <= 20
    assert second.warmup_runs == 1
    pair = replace(asked, entries=(BenchPair(*asked.models),))
    before, after = run_on_host(runner, pair, tmp_path).results
    assert 3 <= before.warmup_runs <= 21
    assert after.warmup_runs == 2


def test_a_pair_is_timed_in_alternating_blocks(
    runner: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = manifest("ok A", "ok B", timing=Timing(warmup_runs=1, samples=4))
    trace = tmp_path / "trace"
    monkeypatch.setenv("FAKE_TRACE", str(trace))
    first, second = single.models
    run = run_on_host(runner, replace(single, entries=(BenchPair(first, second),)), tmp_path)
    assert trace.read_text() == "AB" + "AAA" + "BBB" + "BBB" + "AAA"  # first runs, then a warm-up run and two samples
    assert [(result.id, len(result.samples_ms)) for result in run.results] == [("m0", 4), ("m1", 4)]


def test_each_model_of_a_pair_has_its_own_peak_of_memory(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    single = manifest("memory 60", "memory 20")
    first, second = single.models
    run = run_on_host(runner, replace(single, entries=(BenchPair(first, second), second)), tmp_path)
    larger, smaller, alone = ((result.record.peak_rss_kb or 0) >> 10 for result in run.results)
    assert 30 <= larger - smaller <= 50
    assert abs(smaller - alone) <= 5


def count_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's counts of two clusters, this process on the first. Each run of a model adds a digit to its ticks."""
    for policy, cores in (("policy0", range(min(os.sched_getaffinity(0)) + 1)), ("policy900", [900])):
        folder = tmp_path / "cpu" / "cpufreq" / policy
        (folder / "stats").mkdir(parents=True)
        (folder / "related_cpus").write_text(" ".join(map(str, cores)))
        (folder / "stats" / "time_in_state").write_text("2000000 7\n1000000 1")
    monkeypatch.setenv("AMC_BENCH_CPU_FOLDER", str(tmp_path / "cpu"))
    monkeypatch.setenv("FAKE_TRACE", str(tmp_path / "cpu" / "cpufreq" / "policy0" / "stats" / "time_in_state"))


def test_a_pass_tells_the_clocks_of_its_cores_and_what_interrupted_it(
    runner: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_clocks(tmp_path, monkeypatch)
    (moved,) = run_on_host(runner, manifest("ok 0"), tmp_path).results
    ms = 10 * (100000 - 1)  # at 1 GHz: the first run, one to warm up and three samples
    assert (moved.record.clock_ms, moved.record.clock_mhz_ms, moved.record.clock_top_ms) == (ms, 1000 * ms, 0)
    assert moved.record.switches is not None
    monkeypatch.delenv("FAKE_TRACE")
    (stood,) = run_on_host(runner, manifest("ok 0"), tmp_path).results
    assert stood.record.clock_ms is None
    if len(os.sched_getaffinity(0)) > 1:  # of two clusters one may rest, unless the process was given both
        other = max(os.sched_getaffinity(0))
        (tmp_path / "cpu" / "cpufreq" / "policy900" / "related_cpus").write_text(str(other))
        ticks = tmp_path / "cpu" / "cpufreq" / "policy0" / "stats" / "time_in_state"
        ticks.write_text("2000000 7\n1000000 1")
        monkeypatch.setenv("FAKE_TRACE", str(ticks))
        both = replace(manifest("ok 0"), cores=",".join(map(str, sorted(os.sched_getaffinity(0)))))
        (free,) = run_on_host(runner, manifest("ok 0"), tmp_path).results
        (given,) = run_on_host(runner, both, tmp_path).results
        assert free.record.clock_ms is None
        assert given.record.clock_ms is not None
        monkeypatch.delenv("FAKE_TRACE")
    monkeypatch.setenv("AMC_BENCH_CPU_FOLDER", str(tmp_path))
    (unknown,) = run_on_host(runner, manifest("ok"), tmp_path).results
    assert unknown.record.clock_ms is None


def test_a_model_that_fails_does_not_end_the_run(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    asked = manifest("nonsense", "fail", "ok")
    missing = BenchModel("gone", "no such file")
    folder = BenchModel("folder", ".")
    pair = BenchPair(asked.models[2], missing)
    run = run_on_host(runner, replace(asked, entries=(*asked.entries, missing, folder, pair)), tmp_path)
    assert [result.index for result in run.results] == [2]
    assert {error.index: error.message.removeprefix(str(tmp_path)) for error in run.errors} == {
        0: "not a model that TensorFlow Lite reads",
        1: "TensorFlow Lite cannot run this model (status 1)",
        3: "/no such file cannot be read",
        4: "/. cannot be read",
        5: f"gone: {tmp_path}/no such file cannot be read",
        6: f"gone: {tmp_path}/no such file cannot be read",
    }
    assert run.end == BenchEnd("done", 1, 6, "")
    assert run.exit_code == 0


def test_the_run_ends_at_its_deadline_and_keeps_what_it_has(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    asked = replace(manifest("ok", "sleep 50", "ok", timing=replace(BRIEF, samples=200)), deadline_s=1)
    run = run_on_host(runner, asked, tmp_path)
    assert [result.id for result in run.results] == ["m0"]
    assert run.errors == ()
    assert run.end == BenchEnd("deadline", 1, 0, "the deadline has passed")
    assert run.exit_code == 1


def test_a_model_that_hangs_is_ended_by_the_watchdog(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    run = run_on_host(runner, replace(manifest("ok", "hang"), deadline_s=1), tmp_path)
    assert [result.id for result in run.results] == ["m0"]
    assert run.end == BenchEnd("deadline", 1, 0, "stopped by the watchdog in m1")
    assert run.exit_code == 1


def test_a_model_that_hangs_is_ended_long_before_the_batch(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    asked = replace(manifest("ok", "ok", "hang", "ok"), deadline_s=600, model_deadline_s=1)
    run = run_on_host(runner, asked, tmp_path)
    assert [result.id for result in run.results] == ["m0", "m1"]
    assert run.end == BenchEnd("deadline", 2, 0, "stopped by the watchdog in m2")


def test_each_model_has_the_model_deadline_to_itself(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    timing = replace(BRIEF, warmup_runs=0, samples=1, min_samples=1)
    asked = replace(manifest(*["sleep 400"] * 3, timing=timing), deadline_s=600, model_deadline_s=2)
    pair = BenchPair(*asked.models[:2])
    run = run_on_host(runner, replace(asked, entries=(*asked.entries, pair)), tmp_path)
    assert run.end == BenchEnd("done", 5, 0, "")


def test_a_crash_in_the_library_is_told_with_the_model(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    run = run_on_host(runner, manifest("ok", "crash", "ok"), tmp_path)
    assert [result.id for result in run.results] == ["m0"]
    assert run.end == BenchEnd("error", 1, 0, "killed by signal 11 in m1")
    assert run.exit_code == 1


def test_what_a_runtime_prints_stays_off_the_results(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    run = run_on_host(runner, manifest("print"), tmp_path)
    assert len(run.results) == 1
    assert "noise" in run.log


def test_results_are_appended_to_the_file_that_is_named(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "manifest").write_text(manifest("print").text())
    (tmp_path / "results").write_text("before\n")
    done = subprocess.run([runner, tmp_path / "manifest", tmp_path / "results"], capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, b"")
    before, *lines = (tmp_path / "results").read_text().splitlines()
    assert before == "before"
    assert [json.loads(line)["event"] for line in lines] == ["start", "result", "end"]


def test_a_pulled_cable_does_not_end_the_run(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "manifest").write_text(manifest("sleep 50").text())
    process = subprocess.Popen([runner, tmp_path / "manifest", tmp_path / "results"], stderr=subprocess.DEVNULL)
    results = tmp_path / "results"
    while not results.exists() or "start" not in results.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0
    assert '"status":"done","results":1' in results.read_text()


def test_the_lines_have_the_keys_of_the_recorded_contract(
    runner: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_clocks(tmp_path, monkeypatch)
    (tmp_path / "manifest").write_text(manifest("ok 0", "nonsense").text())
    done = subprocess.run([runner, tmp_path / "manifest"], capture_output=True, text=True, timeout=20)
    recorded = Path(__file__).parents[1] / "data" / "bench_output_v1.jsonl"
    contract = {line["event"]: list(line) for line in map(json.loads, reversed(recorded.read_text().splitlines()))}
    written = {line["event"]: list(line) for line in map(json.loads, done.stdout.splitlines())}
    assert written == contract


def test_the_cores_are_set_and_read_back(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    core = str(max(os.sched_getaffinity(0)))
    run = run_on_host(runner, replace(manifest("ok"), cores=core), tmp_path)
    assert run.start is not None
    assert (run.start.cores_wanted, run.start.cores_seen) == (core, core)


def test_cores_that_this_computer_lacks_end_the_run(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    run = run_on_host(runner, replace(manifest("ok"), cores="1000-1001"), tmp_path)
    assert run.end == BenchEnd("error", 0, 0, "the kernel refuses to run this process on cores 1000-1001")
    assert run.exit_code == 1


def test_the_peak_memory_is_that_of_the_model(runner: Path, manifest: Manifest, tmp_path: Path) -> None:
    large, small = run_on_host(runner, manifest("memory 64", "ok"), tmp_path).results
    assert large.record.peak_rss_kb is not None
    assert small.record.peak_rss_kb is not None
    assert large.record.peak_rss_kb > 64 * 1024
    assert (
        small.record.peak_rss_kb <= large.record.peak_rss_kb
    )  # equal where the kernel does not let a process reset its peak


@pytest.mark.parametrize("option_bytes", [4, 8, 16, 24, 64])
def test_the_delegate_gets_the_threads_and_keeps_its_defaults_in_every_size_of_its_options(
    option_bytes: int, runner: Path, manifest: Manifest, tmp_path: Path
) -> None:
    library = build_fake_library(tmp_path / "lib.so", f"-DOPTION_BYTES={option_bytes}")
    run = run_on_host(runner, replace(manifest("ok"), library=str(library), threads=3), tmp_path)
    assert "delegate with 3 threads, defaults kept" in run.log
    assert "interpreter with 3 threads" in run.log


def test_the_delegate_is_left_out_on_request_and_where_the_library_has_none(
    runner: Path, manifest: Manifest, tmp_path: Path
) -> None:
    library = build_fake_library(tmp_path / "lib.so", "-DNO_DELEGATE")
    for asked in (replace(manifest("ok"), delegate="none"), replace(manifest("ok"), library=str(library))):
        run = run_on_host(runner, asked, tmp_path)
        assert run.start is not None
        assert run.start.delegate == "none"
        assert "delegate with" not in run.log
        assert len(run.results) == 1


def test_a_library_that_is_missing_or_exports_nothing_ends_the_run(
    runner: Path, manifest: Manifest, tmp_path: Path
) -> None:
    run = run_on_host(runner, replace(manifest("ok"), library="/no/such/library.so"), tmp_path)
    assert run.end is not None
    assert run.end.status == "error"
    assert "/no/such/library.so" in run.end.message
    assert run.exit_code == 1
    other = replace(manifest("ok"), runtime="onnxruntime")
    run = run_on_host(runner, other, tmp_path)
    assert run.end == BenchEnd("error", 0, 0, "the library does not export OrtGetApiBase")


HEAD = "amc_bench_manifest 1\nruntime tflite\nlibrary l.so\nthreads 1\ndeadline_s 5\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("amc_bench_manifest 2\n", 'line 1 is not "amc_bench_manifest 1"'),
        (HEAD, "no model"),
        (HEAD + "model m\n", "line 6: model needs an identifier and a path"),
        (HEAD + "model m/n p\n", "line 6: m/n is not an identifier"),
        (HEAD + "model " + "m" * 81 + " p\n", "line 6: mmm"),
        (HEAD + "pair a p b q\n", "separated by tabs"),
        (HEAD + "colour red\n", "line 6: unknown key colour"),
        (HEAD + "\nmodel m p\n", 'line 6: "" is not a key'),
        (HEAD + "threads 2\nmodel m p\n", "line 6: threads is given twice"),
        (HEAD + "model m p\ncores 0\n", "line 7: cores has to stand before the first model"),
        (HEAD + "samples 0\nmodel m p\n", "samples 0 is not allowed"),
        (HEAD + "samples 1e3\nmodel m p\n", "samples 1e3 is not allowed"),
        (HEAD + "samples 99999999999999999999\nmodel m p\n", "is not allowed"),
        (HEAD + "max_s nan\nmodel m p\n", "max_s nan is not allowed"),
        (HEAD + "min_sample_ms -1\nmodel m p\n", "min_sample_ms -1 is not allowed"),
        (HEAD + "graph_path g\nmodel m p\n", "only onnxruntime writes"),
        (HEAD + "delegate gpu\nmodel m p\n", "delegate gpu is not xnnpack or none"),
        (HEAD.replace("tflite", "litert") + "model m p\n", "litert needs its runtime_version"),
        (HEAD.replace("tflite", "torch") + "model m p\n", 'runtime "torch" is not'),
        (HEAD.replace("threads 1\n", "") + "model m p\n", "no threads"),
        (HEAD + "model m p\0q\n", "zero byte"),
        (HEAD + "x" * 100_000, "is not a key, one space and a value"),
    ],
)
def test_a_wrong_manifest_is_refused_before_anything_runs(text: str, why: str, runner: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest").write_text(text)
    done = subprocess.run([runner, tmp_path / "manifest"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    (end,) = map(json.loads, done.stdout.splitlines())
    assert (end["event"], end["status"]) == ("end", "error")
    assert why in end["message"]


def test_the_command_line_is_checked(runner: Path, tmp_path: Path) -> None:
    assert subprocess.run([runner], capture_output=True, timeout=20).returncode == 2
    done = subprocess.run([runner, tmp_path / "none"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert json.loads(done.stdout)["message"] == f"{tmp_path}/none cannot be opened"


def test_messages_that_are_no_text_still_make_json(runner: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest").write_bytes(HEAD.encode() + b'k\xff\xe2\x82\xac"\\\x01\xed\xa0\x80 v\n')
    done = subprocess.run([runner, tmp_path / "manifest"], capture_output=True, timeout=20)
    message = json.loads(done.stdout.decode("utf-8"))["message"]
    assert message.startswith('line 6: unknown key k\ufffd€"\\\x01\ufffd')


LITERT = pytest.mark.skipif(find_spec("ai_edge_litert") is None, reason="needs the tflite extra")
MAKERS = {"onnxruntime": onnx_model, "litert": tflite_model}


def library_manifest(runtime: str, folder: Path, threads: int = 1) -> BenchManifest:
    MAKERS[runtime](folder / "model")
    library = locate_library(runtime)
    entries = (BenchModel("model", "model"), BenchPair(BenchModel("first", "model"), BenchModel("second", "model")))
    timing = Timing(warmup_runs=2, samples=4, min_sample_ms=0.05)
    return BenchManifest(runtime, str(library.path), threads, 60, entries, timing, runtime_version=library.version)


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("litert", marks=LITERT)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_is_timed_alone_and_in_a_pair(runtime: str, threads: int, runner: Path, tmp_path: Path) -> None:
    asked = library_manifest(runtime, tmp_path, threads)
    run = run_on_host(runner, asked, tmp_path)
    assert run.errors == (), run.log
    assert run.end == BenchEnd("done", 3, 0, "")
    assert run.start is not None
    assert (run.start.runtime_version, run.start.threads) == (locate_library(runtime).version, threads)
    assert [(result.id, len(result.samples_ms)) for result in run.results] == [
        ("model", 4), ("first", 4), ("second", 4),
    ]  # fmt: skip
    for result in run.results:
        assert 0 < min(result.samples_ms) <= result.record.first_ms + 1e3


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("litert", marks=LITERT)])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\0\0\0\0TFL3", "cut"])
def test_a_file_that_is_no_model_is_an_error_of_that_model(
    runtime: str, content: bytes | str, runner: Path, tmp_path: Path
) -> None:
    asked = library_manifest(runtime, tmp_path)
    whole = (tmp_path / "model").read_bytes()
    (tmp_path / "broken").write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    entries = (BenchModel("broken", "broken"), BenchModel("model", "model"))
    run = run_on_host(runner, BenchManifest(**{**vars(asked), "entries": entries}), tmp_path)
    assert [error.id for error in run.errors] == ["broken"]
    assert [result.id for result in run.results] == ["model"]
    assert run.errors[0].message.startswith(("ONNX Runtime, loading: ", "LiteRT, reading the model: status"))


@LITERT
@pytest.mark.parametrize("version", ["1.4.0", "2.0.3", "3.0.0", "new"])
def test_a_litert_whose_abi_is_not_known_is_refused(version: str, runner: Path, tmp_path: Path) -> None:
    asked = BenchManifest(**{**vars(library_manifest("litert", tmp_path)), "runtime_version": version})
    run = run_on_host(runner, asked, tmp_path)
    assert run.end == BenchEnd("error", 0, 0, f"LiteRT {version}: this runner knows the versions 2.1.0 to 2.x")
    assert run.exit_code == 1
