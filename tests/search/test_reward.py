import math

import pytest
import torch

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.reward import fidelity, reward_of, top1


def test_fidelity_is_one_for_equal_logits_and_about_zero_for_their_mean():
    reference = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    assert fidelity(reference, reference) == 1
    assert fidelity(reference.mean().expand_as(reference), reference) == pytest.approx(0, abs=1e-2)


def test_top1_is_the_share_of_images_with_the_right_largest_logit():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert top1(logits, torch.tensor([1, 0, 0, 1])) == 0.75


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
    with pytest.raises(InvalidConfig, match="top-1"):
        reward_of("top1", top1=None, fidelity=0.5, cost=1, unit="ms")
    with pytest.raises(InvalidConfig, match="no reward 'f1'"):
        reward_of("f1", top1=0.5, fidelity=0.5, cost=1, unit="ms")


@pytest.mark.parametrize(("name", "unit"), [("error-log-macs", "macs"), ("error-log-params", "parameters")])
def test_each_accuracy_guaranteed_reward_takes_its_own_cost_only(name, unit):
    assert reward_of(name, top1=0.9, fidelity=None, cost=1e5, unit=unit) == pytest.approx(-0.1 * math.log(1e5))
    with pytest.raises(InvalidConfig, match=f"needs a cost in {unit}"):
        reward_of(name, top1=0.9, fidelity=None, cost=1e5, unit="ms")
