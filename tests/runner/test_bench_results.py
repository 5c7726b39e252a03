"""The parser of the runner's output, against the recorded contract and against everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amc_mobile.device.device import PassRecord
from amc_mobile.device.runner import (
    MAX_LINE_BYTES,
    BenchEnd,
    BenchError,
    BenchGraph,
    BenchResult,
    BenchStart,
    ResultStream,
    parse_line,
)
from amc_mobile.errors import DeviceError

RECORDED = (Path(__file__).parents[1] / "data" / "bench_output_v1.jsonl").read_bytes()
IDS = ("conv.16x16", "broken", "whole")
LINES = [json.loads(line) for line in RECORDED.splitlines()]
RESULT = LINES[1]


def line(**changes: Any) -> bytes:
    """The recorded result with some values changed; None leaves the key out."""
    return json.dumps({key: value for key, value in {**RESULT, **changes}.items() if value is not None}).encode()


def test_the_recorded_run_is_read_whatever_the_size_of_the_pieces() -> None:
    expected = [
        BenchStart("1", 4711, "tflite", "2.17.0", 2, "4-5", "4-5", "xnnpack"),
        BenchResult(0, "conv.16x16", 4, 3, (0.1015625, 0.1, 0.09999), PassRecord(1.25, 0.875, 20480, 2, 30, 63000, 20)),
        BenchError(1, "broken", "not a model that TensorFlow Lite reads"),
        BenchResult(2, "whole", 4, 1, (12345.67,), PassRecord(20.5, 31.75)),
        BenchEnd("done", 2, 1, ""),
    ]
    for size in (1, 7, 100, len(RECORDED)):
        stream = ResultStream(IDS)
        events = [e for at in range(0, len(RECORDED), size) for e in stream.feed(RECORDED[at : at + size])]
        assert events == expected
        assert (stream.start, stream.end, stream.missing) == (expected[0], expected[-1], ())


def test_a_run_that_is_cut_off_leaves_what_is_missing() -> None:
    stream = ResultStream(IDS)
    stream.feed(RECORDED[:330])
    assert (stream.end, stream.missing) == (None, (0, 1, 2))
    assert stream.pending_bytes > 0
    stream.feed(RECORDED[330:460])
    assert stream.missing == (1, 2)


def test_unknown_keys_and_unknown_events_are_ignored() -> None:
    assert parse_line(line(voltage=[1, {"a": None}])) == parse_line(line())
    assert parse_line(b'{"format_version":1,"event":"temperature","celsius":31}') is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"format_version": 2}, "its format_version is 2"),
        ({"format_version": True}, "its format_version is True"),
        ({"event": None}, "no event"),
        ({"event": ["result"]}, "no event"),
        ({"index": -1}, "index is not an integer"),
        ({"index": True}, "index is not an integer"),
        ({"index": 1.0}, "index is not an integer"),
        ({"index": 10**30}, "index is not an integer"),
        ({"id": 7}, "id is not a text"),
        ({"id": "x" * 1001}, "id is not a text"),
        ({"load_ms": None}, "load_ms is not a positive"),
        ({"load_ms": "1"}, "load_ms is not a positive"),
        ({"first_ms": 0}, "first_ms is not a positive"),
        ({"first_ms": 1e300}, "first_ms is not a positive"),
        ({"runs_per_sample": 0}, "runs_per_sample is not an integer of at least 1"),
        ({"warmup_runs": "4"}, "warmup_runs is not an integer"),
        ({"samples_ms": []}, "samples_ms is not a list of 1 to"),
        ({"samples_ms": {"0": 1}}, "samples_ms is not a list"),
        ({"samples_ms": [1, -1]}, "samples_ms is not a positive"),
        ({"samples_ms": [1, True]}, "samples_ms is not a positive"),
        ({"samples_ms": [1, None]}, "samples_ms is not a positive"),
        ({"samples_ms": [1] * 100_001}, "samples_ms is not a list of 1 to"),
        ({"peak_rss_kb": -5}, "peak_rss_kb is not an integer"),
        ({"switches": -1}, "switches is not an integer"),
        ({"clock_ms": 0, "clock_mhz_ms": 0, "clock_top_ms": 0}, "clock_ms is not an integer of at least 1"),
        ({"clock_mhz_ms": "9"}, "clock_mhz_ms is not an integer"),
        ({"clock_ms": 10, "clock_mhz_ms": 9, "clock_top_ms": 20}, "clock_top_ms is more than clock_ms"),
    ],
)
def test_a_wrong_value_is_named(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(DeviceError, match=why):
        parse_line(line(**changed))


def graph(**changes: Any) -> bytes:
    document = {"format_version": 1, "event": "graph", "index": 0, "id": "conv.16x16", "base64": "T05OWA=="}
    return json.dumps(document | changes).encode() + b"\n"


def test_a_graph_comes_before_the_result_of_its_model() -> None:
    start, result = RECORDED.splitlines()[:2]
    stream = ResultStream(IDS)
    events = stream.feed(start + b"\n" + graph() + result + b"\n")
    assert events[1] == BenchGraph(0, "conv.16x16", b"ONNX")
    assert isinstance(events[2], BenchResult)
    assert stream.missing == (1, 2)


@pytest.mark.parametrize("text", ["", None, 7, "a", "????", "T05OWA==\n"])
def test_a_graph_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(DeviceError, match="a graph is"):
        parse_line(graph(base64=text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a":NaN}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' + b"9" * 10_000 + b"}", "not JSON"),
        (line().replace(b"[0.1015625", b"[1e999"), "not JSON"),
        (line().replace(b"[0.1015625", b"[-Infinity"), "not JSON"),
        (b" " * (MAX_LINE_BYTES + 1), "longer than"),
    ],
)
def test_a_line_that_is_none_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(DeviceError, match=why):
        parse_line(text)


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    stream = ResultStream(IDS)
    with pytest.raises(DeviceError, match="longer than"):
        for _ in range(100):
            stream.feed(b"x" * (MAX_LINE_BYTES // 10))


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ([1], "before the start"),
        ([0, 0], "starts twice"),
        ([0, 1, 1], "model 0 is answered twice"),
        ([0, 4, 1], "lines after the end"),
        ([0, 4, 4], "lines after the end"),
    ],
)
def test_lines_out_of_order_are_refused(order: list[int], why: str) -> None:
    text = b"".join(RECORDED.splitlines(keepends=True)[i] for i in order)
    with pytest.raises(DeviceError, match=why):
        ResultStream(IDS).feed(text)


@pytest.mark.parametrize("ids", [(), ("other",), ("broken", "conv.16x16")])
def test_a_result_counts_only_for_the_model_that_was_asked_for(ids: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError, match="not the model that was asked for"):
        ResultStream(ids).feed(RECORDED)


def test_control_characters_never_reach_a_terminal() -> None:
    text = json.dumps({**LINES[2], "message": "\x1b[2Jgone\ud800\n"}).encode()
    event = parse_line(text)
    assert isinstance(event, BenchError)
    assert event.message == "?[2Jgone??"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
keys = st.sampled_from(sorted({key for one in LINES for key in one} | {"other"}))
changed_lines = st.builds(
    lambda one, changes: json.dumps({**one, **changes}).encode(),
    st.sampled_from(LINES),
    st.dictionaries(keys, json_values, max_size=3),
)
damaged_lines = st.builds(
    lambda one, at, cut, inserted: one[: at % len(one)] + inserted + one[(at + cut) % len(one) :],
    changed_lines, st.integers(0, 500), st.integers(0, 20), st.binary(max_size=6),
)  # fmt: skip
outputs = st.lists(changed_lines | damaged_lines | st.binary(max_size=60), max_size=4).map(b"\n".join)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(output=outputs, size=st.integers(1, 400))
def test_any_output_gives_sound_events_or_a_device_error(output: bytes, size: int) -> None:
    stream = ResultStream(IDS)
    events = []
    try:
        for at in range(0, len(output), size):
            events += stream.feed(output[at : at + size])
    except DeviceError as error:
        assert error.message
        assert error.next_step
    for event in events:
        if isinstance(event, BenchResult):
            assert event.id == IDS[event.index]
            assert all(0 < sample < float("inf") for sample in event.samples_ms)
            assert event.runs_per_sample >= 1
    answered = [event.index for event in events if isinstance(event, BenchResult | BenchError)]
    assert len(set(answered)) == len(answered)
