import math

import pytest
import torch

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.reward import fidelity, reward_of

REFERENCE = torch.randn(100, 10, generator=torch.Generator().manual_seed(0)) * 3


def test_fidelity_is_one_for_outputs_equal_but_for_scale_and_offset_and_zero_for_their_mean():
    mean = (REFERENCE / 4).softmax(dim=1).mean(dim=0).log() * 4
    assert fidelity(REFERENCE, REFERENCE) == 1
    assert fidelity(REFERENCE / 2 + 5, REFERENCE) == pytest.approx(1)
    assert fidelity(mean.expand_as(REFERENCE), REFERENCE) == pytest.approx(0, abs=0.02)
    assert fidelity(-REFERENCE, REFERENCE) == pytest.approx(0, abs=0.1)


def test_fidelity_weighs_errors_by_what_they_change_in_the_classes_probabilities():
    best = torch.nn.functional.one_hot(REFERENCE.argmax(dim=1), 10)
    worst = torch.nn.functional.one_hot(REFERENCE.argmin(dim=1), 10)
    assert fidelity(REFERENCE - 2 * best, REFERENCE) < fidelity(REFERENCE - 2 * worst, REFERENCE) < 1


def test_fidelity_of_maps_is_the_share_of_the_variance_explained():
    maps = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert fidelity(maps, maps) == 1
    assert fidelity(maps.mean().expand_as(maps), maps) == pytest.approx(0, abs=1e-2)


def test_the_accuracy_guaranteed_reward_is_minus_error_times_log_cost():
    reward = reward_of("error-log-cost", top1=0.75, fidelity=None, cost=1e6, unit="macs")
    assert reward == pytest.approx(-0.25 * math.log(1e6))


def test_the_reward_macs_is_the_share_kept_and_needs_no_accuracy():
    assert reward_of("macs", top1=None, fidelity=None, cost=5, unit="macs", macs_kept=0.5) == 0.5
    with pytest.raises(InvalidConfig, match="not scored"):
        reward_of("macs", top1=0.9, fidelity=0.9, cost=5, unit="macs")


def test_it_prefers_less_latency_even_below_one_millisecond():
    slow, fast = (reward_of("error-log-cost", top1=0.75, fidelity=None, cost=ms, unit="ms") for ms in (0.8, 0.4))
    assert fast > slow


def test_a_reward_without_what_it_needs_is_refused():
    with pytest.raises(InvalidConfig, match="accuracy"):
        reward_of("top1", top1=None, fidelity=0.5, cost=1, unit="ms")
    with pytest.raises(InvalidConfig, match="no reward 'f1'"):
        reward_of("f1", top1=0.5, fidelity=0.5, cost=1, unit="ms")


@pytest.mark.parametrize(("name", "unit"), [("error-log-macs", "macs"), ("error-log-params", "parameters")])
def test_each_accuracy_guaranteed_reward_takes_its_own_cost_only(name, unit):
    assert reward_of(name, top1=0.9, fidelity=None, cost=1e5, unit=unit) == pytest.approx(-0.1 * math.log(1e5))
    with pytest.raises(InvalidConfig, match=f"needs a cost in {unit}"):
        reward_of(name, top1=0.9, fidelity=None, cost=1e5, unit="ms")
