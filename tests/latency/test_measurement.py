from __future__ import annotations

import json
import math

import numpy as np
import pytest
from latency_toys import CONDITIONS, conv, passes

from amc_mobile.device.device import Pass, PassRecord
from amc_mobile.errors import InvalidInput
from amc_mobile.latency.measurement import (
    BUSY,
    FEW_RUNS,
    NOISY,
    KernelMeasurement,
    ModelMeasurement,
    ModelRequest,
    PairMeasurement,
    interval,
    low_ms,
    lowest_two_agree,
    model_key,
    p50_interval_ms,
    pass_low_ms,
)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0, True, "1.0", None])
def test_impossible_samples_are_refused(bad: object) -> None:
    with pytest.raises(InvalidInput, match="latency"):
        Pass((1.0, bad))  # type: ignore[arg-type]


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(InvalidInput, match="without samples"):
        Pass(())
    with pytest.raises(InvalidInput, match="no pass"):
        KernelMeasurement("key", "label", (), CONDITIONS)
    with pytest.raises(InvalidInput, match="no pass"):
        ModelMeasurement((), CONDITIONS, 4)


def test_a_kernel_seen_quiet_twice_has_no_flags() -> None:
    assert KernelMeasurement("k", "l", passes(1.0, 1.04, 9.0), CONDITIONS).flags == ()
    assert KernelMeasurement("k", "l", passes(1.0, 1.06), CONDITIONS).flags == (NOISY,)


def test_a_kernel_is_busy_when_all_its_passes_were() -> None:
    busy = Pass((1.0,) * 4, busy=True)
    assert KernelMeasurement("k", "l", (busy, busy), CONDITIONS).flags == (BUSY,)
    assert KernelMeasurement("k", "l", (busy, *passes(1.0)), CONDITIONS).flags == ()


def test_percentiles_of_a_model_are_over_all_samples() -> None:
    measured = ModelMeasurement((Pass((1.0, 2.0, 3.0)), Pass((4.0, 5.0))), CONDITIONS, 4)
    assert measured.p50_ms == 3.0
    assert measured.p90_ms == pytest.approx(4.6)
    assert measured.low_ms == pytest.approx(1.4)
    assert measured.p50_ratio == pytest.approx(3 / 1.4)
    assert measured.ci_low_ms <= 3.0 <= measured.ci_high_ms


def test_flags_of_a_model_say_what_is_wrong() -> None:
    few = ModelMeasurement(passes(1.0, 1.0), CONDITIONS, 4)
    assert few.flags == (FEW_RUNS,)
    calm = ModelMeasurement(passes(1.0, 1.0, samples=15), CONDITIONS, 4)
    assert calm.flags == ()
    slow = ModelMeasurement(passes(1.0, 1.3, 1.4, samples=15), CONDITIONS, 4)
    assert slow.flags == (NOISY, BUSY)


def test_a_measurement_survives_its_document() -> None:
    measured = ModelMeasurement((Pass((1.0, 2.0), busy=True), Pass((3.0,))), CONDITIONS, 7)
    document = measured.to_document()
    assert ModelMeasurement.from_document(document) == measured
    assert document["runs"] == 3
    assert document["p50_ms"] == 2.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples_ms", [[1.0, -2.0], [3.0]]), ("samples_ms", [[], [3.0]]), ("samples_ms", None), ("busy", [True]),
        ("conditions", {"device": "toy"}), ("warmup_runs", "many"),
    ],
)  # fmt: skip
def test_a_document_that_is_no_measurement_is_refused(key: str, value: object) -> None:
    document = ModelMeasurement(passes(1.0, 2.0), CONDITIONS, 4).to_document()
    with pytest.raises(InvalidInput):
        ModelMeasurement.from_document({**document, key: value})
    with pytest.raises(InvalidInput, match="not a measurement"):
        ModelMeasurement.from_document({k: v for k, v in document.items() if k != key})


def test_a_pair_reports_the_median_speedup_with_its_interval() -> None:
    before, after = (ModelMeasurement(passes(*[ms] * 5), CONDITIONS, 4) for ms in (4.0, 2.0))
    pair = PairMeasurement(before, after, (2.0, 2.1, 1.9, 2.0, 9.0))
    low, high = pair.speedup_interval
    assert pair.speedup == 2.0
    assert 1.9 <= low <= 2.0 <= high <= 9.0
    assert pair.to_document()["rounds"] == 5


def test_the_same_widths_of_two_networks_have_two_keys() -> None:
    assert model_key("plain", (8, 16)) != model_key("other", (8, 16))
    assert model_key("plain", (8, 16)) == ModelRequest("plain", (8, 16), bytes).key
    assert "8 16" in ModelRequest("plain", (8, 16), bytes).label


def test_a_kernels_key_holds_its_shapes_and_no_name() -> None:
    assert conv(8, 16).key == conv(8, 16).key != conv(16, 8).key


def test_a_measurement_keeps_what_is_known_of_its_sessions() -> None:
    records = (PassRecord(9.0, 2.0, 9000), PassRecord(5.0, 3.0, 8000), PassRecord(6.0, 4.0))
    measured = ModelMeasurement(tuple(Pass((1.0,), record=record) for record in records), CONDITIONS, 4)
    assert (measured.load_ms, measured.first_ms, measured.peak_rss_kb) == (6.0, 3.0, 9000)
    document = measured.to_document()
    assert (document["load_ms"], document["first_ms"], document["peak_rss_kb"]) == (6.0, 3.0, 9000)
    assert [p.record for p in ModelMeasurement.from_document(json.loads(json.dumps(document))).passes] == [*records]
    older = {key: value for key, value in document.items() if key != "records"}
    assert ModelMeasurement.from_document(older).load_ms is None


@pytest.mark.parametrize("bad", [-1.0, "9", True, math.inf, [1]])
def test_a_record_that_is_no_number_is_refused(bad: object) -> None:
    document = ModelMeasurement(passes(1.0), CONDITIONS, 4).to_document()
    document["records"][0]["load_ms"] = bad
    with pytest.raises(InvalidInput, match="not a measurement"):
        ModelMeasurement.from_document(document)


# Statistics


def test_the_low_of_a_pass_is_its_20th_percentile() -> None:
    assert pass_low_ms([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]) == 2.0


def test_the_low_of_several_passes_is_the_quietest_one() -> None:
    busy, quiet = [9.0] * 5, [2.0, 2.0, 2.0, 2.0, 50.0]
    assert low_ms([busy, quiet, busy]) == 2.0


def test_one_lucky_sample_does_not_decide() -> None:
    assert low_ms([[0.1] + [2.0] * 9]) == 2.0


def test_two_passes_agree_within_the_tolerance_only() -> None:
    assert lowest_two_agree([[1.0], [7.0], [1.01]], 0.02)
    assert not lowest_two_agree([[1.0], [7.0], [1.03]], 0.02)
    assert not lowest_two_agree([[1.0]], 0.02)


def test_the_central_interval_leaves_two_and_a_half_percent_on_each_side() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


@pytest.mark.parametrize("shape", ["equal", "unequal"])
def test_the_interval_of_the_p50_widens_when_passes_differ(shape: str) -> None:
    rng = np.random.default_rng(0)
    lengths = [30] * 8 if shape == "equal" else [30, 20, 25, 30, 18, 30, 22, 27]
    same = [list(rng.normal(10, 0.2, n)) for n in lengths]
    shifted = [[v + shift for v in samples] for samples, shift in zip(same, np.linspace(0, 4, 8), strict=True)]
    low, high = p50_interval_ms(same)
    assert low < np.median(np.concatenate(same)) < high
    assert high - low < 0.3
    wide_low, wide_high = p50_interval_ms(shifted)
    assert wide_high - wide_low > 5 * (high - low)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        shifts = rng.normal(0, 0.5, 10)
        low, high = p50_interval_ms([list(rng.normal(10 + shift, 0.2, 20)) for shift in shifts])
        covered += low <= 10 <= high
    assert covered >= 49  # 82 %: ten passes are few, a bootstrap of them is a little narrow


@pytest.mark.parametrize(("quiet", "p50_ms"), [(2, 2.0), (3, 1.0)])
def test_the_p50_is_of_a_device_left_alone_once_there_is_enough_of_that(quiet: int, p50_ms: float) -> None:
    passes = (Pass((2.0,) * 20, busy=True),) * 5 + (Pass((1.0,) * 20),) * quiet
    measured = ModelMeasurement(passes, CONDITIONS, 4)
    assert measured.p50_ms == p50_ms
    assert measured.ci_high_ms == pytest.approx(p50_ms)
    assert math.isclose(measured.low_ms, 1.0)
    assert not measured.is_busy
