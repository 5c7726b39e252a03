from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import PRUNABLE, build, example
from torch import nn
from traced_networks import Subject, first_order, halves, smooth_images, subject

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import CostModel, Ids
from amc_mobile.channels.surgery import copied
from amc_mobile.data.images import ImageSet
from amc_mobile.data.sources import load_dataset
from amc_mobile.errors import InvalidInput, NotFinite
from amc_mobile.models.loading import load_model
from amc_mobile.models.task import evaluate
from amc_mobile.pruning import program as program_module
from amc_mobile.pruning import reconstruction
from amc_mobile.pruning.channel_choice import channel_order, kept_of
from amc_mobile.pruning.gram import collect_gram, group_channels
from amc_mobile.pruning.least_squares import (
    DEFAULT_RIDGE,
    Matrices,
    Moments,
    WideRows,
    best_fit,
    corrected,
    factorised,
    ridged,
)
from amc_mobile.pruning.program import Batches, PairedExecutions, Program
from amc_mobile.pruning.reconstruction import Folding, NestedSolver, Reconstructor, find_folding, folded, prune, refit

State = dict[str, torch.Tensor]
FRESH = smooth_images(60, seed=50)


def reconstructor(name: str) -> Reconstructor:
    net = subject(name)
    return Reconstructor(net.model, net.groups, net.gram, channel_order(net.groups, net.model, net.gram))


def three_quarters(net: Subject) -> dict[str, Ids]:
    return kept_of(channel_order(net.groups, net.model, net.gram), np.maximum(2, net.groups.sizes * 3 // 4))


def error(net: Subject, model: nn.Module, images: torch.Tensor = FRESH) -> float:
    with torch.no_grad():
        return float((model(images) - net.model(images)).square().mean())


def state_of(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def shapes(state: State) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def inputs_of(model: nn.Module, module: str, images: torch.Tensor) -> torch.Tensor:
    """What `module` reads when `model` runs."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_reconstructed_network_has_the_shapes_of_surgery_and_at_full_width_the_original_weights(name: str) -> None:
    net, rebuild = subject(name), reconstructor(name)
    whole, original = rebuild.build(net.groups.sizes).state_dict(), net.model.state_dict()
    assert equal(whole, original)
    assert all(value.data_ptr() != original[key].data_ptr() or value.numel() == 0 for key, value in whole.items())
    widths = halves(net.groups)
    built = rebuild.build(widths)
    cut = surgery.apply(net.model, net.groups, rebuild.kept(widths))
    assert shapes(built.state_dict()) == shapes(cut.state_dict())
    with torch.no_grad():
        assert built(net.images[:2]).isfinite().all()


@pytest.mark.parametrize(("name", "group"), [("PaddedShortcut", "a1.0"), ("Flattened", "features.2.0")])
def test_the_reader_gets_the_least_squares_weights_of_true_activations(name: str, group: str) -> None:
    """The same answer as unfolding the whole activations and calling a solver, the group cut alone."""
    net = subject(name)
    rebuild = Reconstructor(net.model, net.groups, net.gram, first_order(net.groups))
    index = net.groups.names.index(group)
    widths = net.groups.sizes
    widths[index] //= 2
    reader = net.groups.groups[index].consumers[0]
    read = inputs_of(net.model, reader, net.images)
    weight = net.model.get_parameter(f"{reader}.weight").detach()
    if weight.ndim == 4:
        rows = torch.nn.functional.unfold(read, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    else:
        rows = read.double()
    width = rows.shape[1] // net.groups.sizes[index] * widths[index]  # first channels: first columns
    expected = torch.linalg.lstsq(rows[:, :width], rows @ weight.flatten(1).T.double()).solution.T
    solved = rebuild.build(widths).get_parameter(f"{reader}.weight").detach().flatten(1).double()
    error = [
        float((rows[:, :width] @ w.T - rows @ weight.flatten(1).T.double()).square().sum()) for w in (expected, solved)
    ]
    assert error[1] == pytest.approx(error[0], rel=2e-2)


@pytest.mark.parametrize("name", ["PaddedShortcut", "PaddedDepthwise", "Bottleneck", "SqueezeExcite", "InceptionLike"])
def test_reconstruction_brings_the_outputs_closer(name: str) -> None:
    net, rebuild = subject(name), reconstructor(name)
    widths = np.maximum(2, net.groups.sizes * 3 // 4)
    cut = surgery.apply(net.model, net.groups, rebuild.kept(widths))
    assert error(net, rebuild.build(widths), net.images) < 0.7 * error(net, cut, net.images)


def test_the_error_of_a_group_is_that_of_the_layer_in_the_network_and_falls_with_the_width() -> None:
    net, rebuild = subject("PaddedShortcut"), reconstructor("PaddedShortcut")
    widths = net.groups.sizes
    index = net.groups.names.index("a1.0")
    widths[index] = 4
    outputs = []
    for model in (net.model, rebuild.build(widths)):
        hook = model.get_submodule("a2").register_forward_hook(lambda _m, _i, out: outputs.append(out.double()))
        with torch.no_grad():
            model(net.images)
        hook.remove()
    true, cut = outputs
    expected = (true - cut).square().mean((0, 2, 3)).sum() / true.var((0, 2, 3), correction=0).sum()
    errors = rebuild.group_errors(index, np.arange(2, 9))
    assert errors[2] == pytest.approx(float(expected), rel=1e-2)
    assert errors[-1] == 0 and (np.diff(errors) < 0).all()


def test_a_small_cache_gives_the_same_networks_also_after_one_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = halves(subject("PaddedShortcut").groups)
    small, large = reconstructor("PaddedShortcut"), reconstructor("PaddedShortcut")
    first = large.build(widths)
    before = state_of(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert equal(large.build(widths).state_dict(), before)
    monkeypatch.setattr(reconstruction, "CACHE_BYTES", 1)
    assert all(equal(small.build(widths).state_dict(), before) for _ in range(2))
    assert len(small._solved) == 1
    assert small._used_bytes == next(iter(small._solved.values())).nbytes


def test_modules_that_share_a_weight_share_it_after_the_cut() -> None:
    built = reconstructor("CalledTwice").build(halves(subject("CalledTwice").groups))
    assert built.one.weight is built.two.weight


def test_inputs_that_are_always_zero_keep_their_weights() -> None:
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.equal(ridged(nothing, 1e-4), torch.eye(3, dtype=torch.float64))
    assert torch.equal(corrected(nothing, torch.zeros(3, 2, dtype=torch.float64), 1e-4), nothing[:, :2])


def test_a_moment_that_is_not_finite_is_refused_at_once() -> None:
    moment = torch.eye(3, dtype=torch.float64)
    moment[1, 2] = float("nan")
    with pytest.raises(NotFinite):
        factorised(moment, 1e-4)


@pytest.mark.parametrize(("name", "layer"), [("Flattened", "classifier.0"), ("Flattened", "features.2.0")])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_prefix_is_solved_as_the_columns_alone_would_be(name: str, layer: str, share: float) -> None:
    net = subject(name)
    gram = net.gram.layers[layer]
    group = int(gram.in_ids.group[0])
    places = group_channels(gram.in_ids, group, net.groups.groups[group].channels)
    assert places is not None
    order = places[np.random.default_rng(0).permutation(len(places))]
    kept = order[: int(len(order) * share)]
    ridge = DEFAULT_RIDGE * float(gram.moment.diagonal().mean())  # of all columns, whatever the prefix
    columns = gram.columns(np.sort(kept.ravel()))
    moment, weight = gram.moment[columns][:, columns], gram.weight[columns]
    wanted = weight + corrected(
        moment, gram.projection[columns] - moment @ weight, ridge / float(moment.diagonal().mean())
    )
    solved = NestedSolver(gram, order, Matrices()).solve(kept.size)
    assert solved.shape == wanted.shape
    torch.testing.assert_close(solved.double(), wanted, rtol=1e-4, atol=1e-5)
    if share == 1.0:
        torch.testing.assert_close(solved.double(), gram.weight, rtol=1e-4, atol=1e-5)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_folded_network_computes_the_same(name: str) -> None:
    net = subject(name)
    folding = find_folding(net.model, net.images[:1])
    with torch.no_grad():
        expected = net.model(net.images)
        assert torch.allclose(folded(net.model, folding)(net.images), expected, rtol=1e-3, atol=1e-4)


def test_a_network_that_views_its_maps_keeps_their_layout() -> None:
    net = subject("Flattened")
    folding = find_folding(net.model, net.images[:1])
    assert not folding.channels_last
    assert norms(folded(net.model, folding)) == 0


def test_a_folding_holds_for_pruned_networks_too() -> None:
    net = subject("Bottleneck")
    folding = find_folding(net.model, net.images[:1])
    order = channel_order(net.groups, net.model, net.gram, method="l1")
    pruned = Reconstructor(net.model, net.groups, net.gram, order).build(halves(net.groups))
    quick = folded(pruned, folding)
    with torch.no_grad():
        assert torch.allclose(quick(net.images), pruned(net.images), rtol=1e-3, atol=1e-4)
    assert norms(pruned) == 5
    assert norms(quick) == 0
    assert quick.fc.weight.data_ptr() != pruned.fc.weight.data_ptr()


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_copy_is_what_deepcopy_gives(name: str) -> None:
    model = subject(name).model
    memo: dict[int, Any] = {}
    twin, other = copied(model, memo), copy.deepcopy(model)
    assert str(twin) == str(other)
    assert list(twin.state_dict()) == list(other.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value)
        assert twin.state_dict()[key].data_ptr() != value.data_ptr()
    shared = {id(module) for module in model.modules()} & {id(module) for module in twin.modules()}
    assert not shared
    assert [n for n, _ in twin.named_modules()] == [n for n, _ in other.named_modules()]  # one module twice stays one
    for mine, theirs in zip(twin.modules(), model.modules(), strict=True):
        assert list(mine.__dict__) == list(theirs.__dict__)
        mutable = [k for k, v in theirs.__dict__.items() if isinstance(v, (dict, list, set))]
        assert not any(mine.__dict__[key] is theirs.__dict__[key] for key in mutable)
    twin.register_forward_hook(lambda *_: None)
    assert not model._forward_hooks


class Holder(nn.Module):
    """Holds a module in a plain list, which only deepcopy follows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.listed = [self.inner]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.listed[0](x)  # type: ignore[no-any-return]


def test_a_copy_follows_modules_in_lists_and_takes_what_the_memo_gives() -> None:
    model = Holder()
    twin = copied(model, {})
    assert isinstance(twin, Holder)
    assert twin.listed[0] is twin.inner is not model.inner
    other = nn.Linear(3, 3)
    replaced = copied(model, {id(model.inner): other})
    assert isinstance(replaced, Holder)
    assert replaced.inner is replaced.listed[0] is other


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("DenseLike", (("transition.0.0", "transition.0.1"),)),  # elsewhere the batch norm comes first
        ("CalledTwice", (("stem.0", "stem.1"),)),  # the other one runs twice
    ],
)
def test_only_batch_norms_that_follow_one_convolution_are_folded(name: str, pairs: tuple[tuple[str, str], ...]) -> None:
    net = subject(name)
    assert find_folding(net.model, net.images[:1]) == Folding(pairs)


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_refitted_network_is_cut_like_surgery_and_closer_to_the_original(name: str) -> None:
    net = subject(name)
    kept, before = three_quarters(net), state_of(net.model)
    refitted = refit(net.model, net.groups, kept, net.images, positions=50)
    cut = surgery.apply(net.model, net.groups, kept)
    assert shapes(refitted.state_dict()) == shapes(cut.state_dict())
    assert equal(net.model.state_dict(), before)
    assert error(net, refitted) < 0.6 * error(net, cut)
    if name in ("PaddedShortcut", "Bottleneck", "Flattened", "SqueezeExcite"):
        widths = np.array([len(channels) for channels in kept.values()])
        assert error(net, refitted) < error(net, reconstructor(name).build(widths))
    if name == "Upsampling":
        assert not torch.equal(refitted.up.weight, cut.up.weight)  # transposed convolutions, too


def test_what_lies_before_the_first_cut_keeps_its_weights() -> None:
    net = subject("PaddedShortcut")
    assert equal(refit(net.model, net.groups, {}, net.images).state_dict(), net.model.state_dict())
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
    sums = [inputs_of(network, "fc", images) for network in (model, refitted)]
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
    seen = [inputs_of(model, "grouped.1", net.images) for model in (net.model, refitted)]
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
    assert equal(results[0], results[1]) and equal(results[0], results[2])


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
    assert equal(*(net.state_dict() for net in nets))


def test_layers_that_cannot_be_refitted_keep_the_weights_that_were_scored() -> None:
    """A layer that runs twice has no one input to be fitted to."""
    net, rebuild = subject("CalledTwice"), reconstructor("CalledTwice")
    widths = halves(net.groups)
    one_shot = rebuild.build(widths)
    before = state_of(one_shot)
    from_cut, from_scored = (
        refit(net.model, net.groups, rebuild.kept(widths), net.images, start=start, positions=50)
        for start in (None, one_shot)
    )
    assert error(net, from_scored) < min(error(net, from_cut), error(net, one_shot))
    assert equal(one_shot.state_dict(), before)


def test_layers_too_wide_for_a_matrix_are_fitted_on_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    net = subject("Flattened")
    kept = three_quarters(net)
    monkeypatch.setattr(reconstruction, "MAX_COLUMNS", 16)
    refitted = refit(net.model, net.groups, kept, net.images)
    assert error(net, refitted) < 0.6 * error(net, surgery.apply(net.model, net.groups, kept))


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
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


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
