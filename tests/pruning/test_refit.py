from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import PRUNABLE, build, example
from torch import nn
from traced_networks import Subject, first_order, smooth_images, subject

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import CostModel, Ids
from amc_mobile.data.images import ImageSet
from amc_mobile.data.sources import load_dataset
from amc_mobile.errors import InvalidInput
from amc_mobile.models.loading import load_model
from amc_mobile.models.task import evaluate
from amc_mobile.pruning import program as program_module
from amc_mobile.pruning import reconstruction as refit_module
from amc_mobile.pruning.channel_choice import channel_order, kept_of
from amc_mobile.pruning.gram import collect_gram
from amc_mobile.pruning.least_squares import Moments, WideRows, best_fit
from amc_mobile.pruning.program import Batches, PairedExecutions, Program
from amc_mobile.pruning.reconstruction import Reconstructor, prune, refit


def three_quarters(net: Subject) -> dict[str, Ids]:
    order = channel_order(net.groups, net.model, net.gram)
    return kept_of(order, np.maximum(2, net.groups.sizes * 3 // 4))


def error(net: Subject, model: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(images) - net.model(images)).square().mean())


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_refitted_network_is_cut_like_surgery_and_closer_to_the_original(name: str) -> None:
    net = subject(name)
    kept = three_quarters(net)
    before = {key: value.clone() for key, value in net.model.state_dict().items()}
    refitted = refit(net.model, net.groups, kept, net.images, positions=50)
    cut = surgery.apply(net.model, net.groups, kept)
    assert {k: v.shape for k, v in refitted.state_dict().items()} == {k: v.shape for k, v in cut.state_dict().items()}
    assert all(torch.equal(value, before[key]) for key, value in net.model.state_dict().items())
    fresh = smooth_images(60, seed=50)
    assert error(net, refitted, fresh) < 0.6 * error(net, cut, fresh)


@pytest.mark.parametrize("name", ["PaddedShortcut", "Bottleneck", "Flattened", "SqueezeExcite"])
def test_refitting_in_sequence_beats_the_one_shot_reconstruction(name: str) -> None:
    net = subject(name)
    order = channel_order(net.groups, net.model, net.gram)
    widths = np.maximum(2, net.groups.sizes * 3 // 4)
    one_shot = Reconstructor(net.model, net.groups, net.gram, order).build(widths)
    refitted = refit(net.model, net.groups, kept_of(order, widths), net.images, positions=50)
    fresh = smooth_images(60, seed=50)
    assert error(net, refitted, fresh) < error(net, one_shot, fresh)


def test_a_plan_that_keeps_everything_changes_nothing() -> None:
    net = subject("Bottleneck")
    refitted = refit(net.model, net.groups, {}, net.images)
    original = net.model.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in refitted.state_dict().items())


def test_layers_before_the_first_cut_keep_their_weights() -> None:
    net = subject("PaddedShortcut")
    refitted = refit(net.model, net.groups, {"b1.0": np.arange(8)}, net.images)
    for key in ("stem.0.weight", "stem.1.running_mean", "a1.0.weight", "a2.weight", "a2.bias"):
        assert torch.equal(refitted.state_dict()[key], net.model.state_dict()[key])


class Twins(nn.Module):
    """A residual branch whose last layer can make up exactly for what an earlier layer lost."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1, bias=False)
        self.first = nn.Conv2d(8, 4, 1, bias=False)
        self.last = nn.Conv2d(4, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(x + self.norm(self.last(self.first(x)))).mean((2, 3))


def test_the_end_of_a_branch_is_fitted_to_the_original_sum() -> None:
    """All is linear with three input channels, so 4 of 8 shared channels can still give the exact sum."""
    torch.manual_seed(0)
    model, images = Twins().eval(), torch.randn(40, 3, 4, 4)
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
        model.norm.weight.uniform_(0.5, 2)
        model.norm.bias.normal_()
    groups = find_groups(model, images[:2])
    kept = {"stem": np.array([1, 3, 4, 6]), "first": np.array([0, 1, 3])}
    refitted = refit(model, groups, kept, images)
    sums: list[torch.Tensor] = []
    for network in (model, refitted):
        network.fc.register_forward_pre_hook(lambda _, inputs: sums.append(inputs[0]))
        with torch.no_grad():
            network(images)
    assert torch.allclose(sums[0][:, kept["stem"]], sums[1], atol=1e-3)


def test_a_batch_norm_that_hides_its_channel_stays_finite() -> None:
    net = subject("DenseLike")
    model = surgery.apply(net.model, net.groups, {})
    with torch.no_grad():
        model.transition[0][1].weight[:3] = 0
    refitted = refit(model, net.groups, three_quarters(net), net.images)
    assert all(value.isfinite().all() for value in refitted.state_dict().values())


def test_norms_behind_other_layers_move_as_their_inputs_do() -> None:
    net = subject("Grouped")
    refitted = refit(net.model, net.groups, three_quarters(net), net.images)
    seen: list[torch.Tensor] = []
    for model in (net.model, refitted):
        hook = model.grouped[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            model(net.images)
        hook.remove()
    norm, moved = net.model.grouped[1], refitted.grouped[1]
    before, after = ((value.mean((0, 2, 3)), value.var((0, 2, 3), correction=0)) for value in seen)
    assert not torch.allclose(moved.running_mean, norm.running_mean, atol=1e-4)
    assert torch.allclose(moved.running_mean - norm.running_mean, after[0] - before[0], atol=1e-4)
    assert torch.allclose(moved.running_var / norm.running_var, (after[1] + 1e-5) / (before[1] + 1e-5), rtol=1e-3)


@pytest.mark.parametrize("name", ["PaddedShortcut", "Grouped", "DenseLike"])
def test_the_memory_changes_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "BATCH_SIZE", 10)
    net = subject(name)
    results, used = [], []
    for memory in (0, 300_000, 2**30):
        refitted = refit(net.model, net.groups, three_quarters(net), net.images, memory_bytes=memory,
                         on_images=used.append)  # fmt: skip
        results.append(refitted.state_dict())
    assert used == [60, 60, 60]
    assert all(torch.equal(value, other[key]) for key, value in results[0].items() for other in results[1:])


def test_values_that_do_not_fit_are_computed_again_not_kept() -> None:
    """What the runs hold between two layers: nothing but their place without memory, at most the limit with some."""
    net = subject("PaddedShortcut")
    program, small = (
        Program(model, net.images[:10]) for model in (net.model, surgery.apply(net.model, net.groups, {}))
    )
    batches = Batches(net.images, 10)
    for limit in (0, 400_000, 2**30):
        steps = list(program.single_steps().values())
        held = [step.node for step in steps]
        runs = PairedExecutions(program, small, batches, held, limit)
        most = 0
        for step, other in zip(steps, small.single_steps().values(), strict=True):
            for _ in runs.at(step.node, other.node):
                pass
            runs.release(step.node)
            kept = [value for pair in runs._stored for run in pair for value in run._values.values()]
            most = max(most, sum(value.nbytes for value in kept))
        assert most <= limit
        assert (most > 0) == (limit > 0)


def test_an_image_set_is_normalised_batch_by_batch_and_refits_like_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "BATCH_SIZE", 20)
    net = subject("PaddedShortcut")
    pixels = (net.images * 40 + 128).clamp(0, 255).to(torch.uint8)
    asked: list[int] = []

    class Watched(ImageSet):
        def normalised(self, select: Any = slice(None)) -> torch.Tensor:
            found = super().normalised(select)
            asked.append(len(found))
            return found

    images = Watched(pixels, torch.zeros(60, dtype=torch.int64), torch.full((3,), 0.5), torch.full((3,), 0.2))
    plain = images.normalised()
    asked.clear()
    nets = [refit(net.model, net.groups, three_quarters(net), given) for given in (images, plain)]
    assert set(asked) == {20}
    assert all(torch.equal(v, nets[1].state_dict()[k]) for k, v in nets[0].state_dict().items())


def test_layers_that_cannot_be_refitted_keep_the_weights_that_were_scored() -> None:
    """A layer that runs twice has no one input to be fitted to."""
    net = subject("CalledTwice")
    order = channel_order(net.groups, net.model, net.gram)
    widths = np.maximum(2, net.groups.sizes // 2)
    kept = kept_of(order, widths)
    one_shot = Reconstructor(net.model, net.groups, net.gram, order).build(widths)
    before = {key: value.clone() for key, value in one_shot.state_dict().items()}
    from_cut = refit(net.model, net.groups, kept, net.images, positions=50)
    from_scored = refit(net.model, net.groups, kept, net.images, start=one_shot, positions=50)
    fresh = smooth_images(60, seed=50)
    assert error(net, from_scored, fresh) < error(net, from_cut, fresh)
    assert error(net, from_scored, fresh) < error(net, one_shot, fresh)
    assert all(torch.equal(value, before[key]) for key, value in one_shot.state_dict().items())


def test_layers_too_wide_for_a_matrix_are_fitted_on_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    net = subject("Flattened")
    kept = three_quarters(net)
    cut = surgery.apply(net.model, net.groups, kept)
    monkeypatch.setattr(refit_module, "MAX_COLUMNS", 16)
    refitted = refit(net.model, net.groups, kept, net.images)
    fresh = smooth_images(60, seed=50)
    assert error(net, refitted, fresh) < 0.6 * error(net, cut, fresh)


@pytest.mark.parametrize("intercept", [True, False])
def test_rows_and_moments_give_one_solution(intercept: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 12, generator=generator) + 1
    residuals = torch.randn(40, 3, generator=generator) + rows[:, :3]
    moments, wide = Moments(12, 3), WideRows(12, 3)
    for known in (moments, wide):
        known.add(rows[:25], residuals[:25])
    more = [Moments(12, 3), WideRows(12, 3)]
    for known in more:
        known.add(rows[25:], residuals[25:])
    fits = [(known + rest).fit(0.05, intercept=intercept) for known, rest in zip((moments, wide), more, strict=True)]
    for solved in zip(*fits, strict=True):
        assert torch.allclose(solved[0].float(), solved[1].float(), atol=1e-4)
    gains = [rest.gain(change.to(dtype), shift.to(dtype)) for rest, dtype in zip(more, (torch.float64, torch.float32),
             strict=True) for change, shift in [fits[0]]]  # fmt: skip
    assert torch.allclose(gains[0], gains[1], atol=1e-4)
    assert moments.rows == wide.rows == 25


def test_a_transposed_convolution_is_refitted() -> None:
    net = subject("Upsampling")
    producer = next(group for group in net.groups.groups if "up" in group.consumers)
    kept = {producer.name: np.arange(0, producer.channels, 2)}
    refitted = refit(net.model, net.groups, kept, net.images, positions=50)
    cut = surgery.apply(net.model, net.groups, kept)
    assert not torch.equal(refitted.up.weight, cut.up.weight)


@pytest.mark.parametrize("kind", [Moments, WideRows])
def test_a_fit_that_loses_on_rows_held_out_changes_nothing(kind: type[Moments]) -> None:
    """Residuals that have nothing to do with the rows, then ones that follow from them."""
    generator = torch.Generator().manual_seed(2)
    rows, residuals = torch.randn(400, 20, generator=generator), torch.randn(400, 3, generator=generator)
    for wanted, changes in ((residuals, False), (rows[:, :3], True)):
        parts = [kind(20, 3) for _ in range(2)]
        parts[0].add(rows[:24], wanted[:24])
        parts[1].add(rows[24:], wanted[24:])
        change, shift = best_fit(*parts, 1e-4, intercept=True, scale=torch.ones(3, dtype=torch.float64))
        assert bool(change.abs().max() > 0) == bool(shift.abs().max() > 0) == changes


def test_the_seed_decides_the_result() -> None:
    net = subject("PaddedShortcut")
    kept = kept_of(first_order(net.groups), np.maximum(2, net.groups.sizes // 2))
    results = [refit(net.model, net.groups, kept, net.images, positions=3, seed=s).state_dict() for s in (3, 3, 4)]
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert any(not torch.equal(results[0][key], results[2][key]) for key in results[0])


@pytest.mark.slow
@pytest.mark.skipif("AMC_MOBILE_DATA" not in os.environ, reason="AMC_MOBILE_DATA names no folder with CIFAR-10")
def test_half_of_resnet20_keeps_most_of_its_accuracy() -> None:
    """Inner channels at half the MACs, fewer images than usual: without weights refitted it falls to 20-30 %."""
    data = Path(os.environ["AMC_MOBILE_DATA"]) / "cifar10"
    torch.set_num_threads(1)
    loaded = load_model("resnet20", checkpoint=data / "resnet20-12fca82f.th")
    dataset = load_dataset(f"cifar10:{data}/cifar10_lossless.npz", normalisation=loaded.normalisation)
    groups = find_groups(loaded.module, torch.zeros(loaded.input_shape))
    inner = [name.endswith("conv1") and name != "conv1" for name in groups.names]
    widths = np.where(inner, groups.sizes // 2, groups.sizes)
    costs = CostModel(loaded.module, groups)
    assert costs.macs(widths) < 0.52 * costs.macs(groups.sizes)
    images, test = dataset.train.normalised(slice(0, 500)), dataset.test
    gram = collect_gram(loaded.module, groups, images)
    rebuild = Reconstructor(loaded.module, groups, gram, channel_order(groups, loaded.module, gram))
    cut, one_shot = surgery.apply(loaded.module, groups, rebuild.kept(widths)).eval(), rebuild.build(widths)
    refitted = refit(loaded.module, groups, rebuild.kept(widths), images)
    accuracies = [evaluate(model, test) for model in (cut, one_shot, refitted)]
    assert accuracies[0] < 0.5
    assert accuracies[1] > 0.68
    assert accuracies[2] > max(0.75, accuracies[1])


def test_any_network_is_pruned_by_a_plan_written_by_hand() -> None:
    model, x = build("Chain"), example()
    smaller = prune(model, {"stem": 6}, x)
    assert smaller.get_parameter("stem.weight").shape[0] == 6 and model.get_parameter("stem.weight").shape[0] == 12
    read = model.get_parameter("wide.weight").abs().sum((0, 2, 3))
    expected = model.get_parameter("stem.weight")[read.argsort(descending=True)[:6].sort().values]
    assert torch.equal(smaller.get_parameter("stem.weight"), expected)
    refitted = prune(model, find_groups(model, x).plan({"stem": 6}), x, images=example(64))
    assert not torch.equal(refitted.get_parameter("wide.weight"), smaller.get_parameter("wide.weight"))


def test_a_plan_of_another_network_is_refused() -> None:
    plan = find_groups(build("Chain"), example()).plan({})
    with pytest.raises(InvalidInput, match="the plan is for the groups"):
        prune(build("Flattened"), plan, example())
    with pytest.raises(InvalidInput, match="no channel group is called 'nothing'"):
        prune(build("Chain"), {"nothing": 3}, example())
