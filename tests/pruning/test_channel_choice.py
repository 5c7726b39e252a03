from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from networks import PRUNABLE
from sklearn.linear_model import Lasso
from torch import Tensor
from torch.nn import functional
from traced_networks import first_order, halves, subject

from amc_mobile.channels.plan import CHANNEL_CHOICES
from amc_mobile.channels.structure import DimensionIds
from amc_mobile.errors import InvalidConfig
from amc_mobile.pruning import channel_choice
from amc_mobile.pruning.channel_choice import (
    Fit,
    channel_order,
    contributions,
    eliminate,
    greedy_removal,
    kept_of,
    lasso,
    matching_pursuit,
)
from amc_mobile.pruning.gram import GramStatistics, LayerGram
from amc_mobile.pruning.least_squares import ridged
from amc_mobile.pruning.reconstruction import Reconstructor


@pytest.mark.parametrize("method", CHANNEL_CHOICES)
@pytest.mark.parametrize("name", PRUNABLE)
def test_an_order_holds_every_channel_of_every_group_once(name: str, method: str) -> None:
    net = subject(name)
    labels = torch.arange(len(net.images)) % 5
    order = channel_order(net.groups, net.model, net.gram, method=method, labelled=(net.images, labels))
    assert list(order) == list(net.groups.names)
    for group in net.groups.groups:
        assert sorted(order[group.name]) == list(range(group.channels))


@pytest.mark.parametrize(
    ("name", "group", "reader"), [("PaddedShortcut", "a1.0", "a2"), ("Flattened", "features.2.0", "classifier.0")]
)
def test_l1_adds_the_absolute_weights_that_read_a_channel(name: str, group: str, reader: str) -> None:
    net = subject(name)
    order = channel_order(net.groups, net.model, net.gram, method="l1")
    weight = net.model.get_parameter(f"{reader}.weight").detach().abs()
    scores = weight.reshape(len(weight), net.groups.channels[group], -1).sum((0, 2))
    assert order[group].tolist() == np.argsort(-scores.numpy()).tolist()


@pytest.mark.parametrize("name", ["PaddedShortcut", "DenseLike", "Flattened", "SqueezeExcite", "PaddedDepthwise"])
def test_backward_elimination_loses_less_than_the_first_channels(name: str) -> None:
    net = subject(name)
    chosen = Reconstructor(net.model, net.groups, net.gram, channel_order(net.groups, net.model, net.gram))
    first = Reconstructor(net.model, net.groups, net.gram, first_order(net.groups))
    widths = halves(net.groups)
    errors = [[float(r.group_errors(g, widths[g : g + 1])[0]) for g in range(len(widths))] for r in (chosen, first)]
    # Greedy in squared errors without a ridge's own error: allow rounding.
    assert all(a <= b * 1.02 + 1e-9 for a, b in zip(*errors, strict=True))
    assert sum(errors[0]) < 0.9 * sum(errors[1])


def test_groups_without_matrices_or_with_too_many_columns_are_ordered_by_l1(monkeypatch: pytest.MonkeyPatch) -> None:
    net = subject("PaddedShortcut")
    by_l1 = channel_order(net.groups, net.model, net.gram, method="l1")
    without = channel_order(net.groups, net.model, GramStatistics({}))
    assert all(np.array_equal(without[name], by_l1[name]) for name in by_l1)
    monkeypatch.setattr(channel_choice, "MAX_ELIMINATION_COLUMNS", 9 * 8)  # a2 has as many, b2 twice as many
    mixed = channel_order(net.groups, net.model, net.gram)
    assert np.array_equal(mixed["b1.0"], by_l1["b1.0"])
    assert not np.array_equal(mixed["a1.0"], by_l1["a1.0"])


def test_an_unknown_method_is_refused() -> None:
    net = subject("PaddedShortcut")
    with pytest.raises(InvalidConfig, match="'l0'; allowed: backward, omp, lasso"):
        channel_order(net.groups, net.model, net.gram, method="l0")
    with pytest.raises(InvalidConfig, match="taylor needs labelled images"):
        channel_order(net.groups, net.model, net.gram, method="taylor")


def test_kept_channels_are_the_first_of_the_order_sorted() -> None:
    order = {"a": np.array([3, 0, 2, 1]), "b": np.array([1, 0])}
    kept = kept_of(order, np.array([2, 2]))
    assert {name: ids.tolist() for name, ids in kept.items()} == {"a": [0, 3], "b": [0, 1]}
    assert torch.equal(torch.from_numpy(kept["a"]), torch.tensor([0, 3]))


def test_the_geometric_median_score_is_the_sum_of_distances_to_the_other_filters() -> None:
    net = subject("PaddedShortcut")
    filters = net.model.a1[0].weight.detach().flatten(1)
    expected = [sum(float((filters[i] - other).norm()) for other in filters) for i in range(len(filters))]
    found = channel_choice.geometric_median(net.groups, net.model, net.groups.names.index("a1.0"))
    assert found == pytest.approx(np.array(expected) / sum(expected), rel=1e-5)


def test_rms_weights_a_channel_by_what_it_carries() -> None:
    net = subject("PaddedShortcut")
    group = net.groups.names.index("a1.0")
    read: list[torch.Tensor] = []
    handle = net.model.a2.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        net.model(net.images)
    handle.remove()
    # As the Gram matrix sees them: every tap of the kernel at every output position, padding included.
    rows = functional.unfold(read[0], 3, padding=1).transpose(1, 2).flatten(0, 1)
    rms = rows.square().mean(0).sqrt().view(8, 9)
    expected = (net.model.a2.weight.detach().abs().sum(0).flatten(1) * rms).sum(1)
    found = channel_choice.l1_rms(net.groups, net.model, net.gram, group)
    assert found == pytest.approx((expected / expected.sum()).numpy(), rel=1e-4)


@pytest.mark.parametrize("name", ["PaddedShortcut", "Flattened"])
def test_taylor_is_the_squared_change_of_the_loss_under_a_gate(name: str) -> None:
    net = subject(name)
    labels = torch.arange(20) % 5
    images = net.images[:20]
    reader = {"PaddedShortcut": "a2", "Flattened": "classifier.0"}[name]
    group = {"PaddedShortcut": "a1.0", "Flattened": "features.2.0"}[name]
    index = net.groups.names.index(group)
    channels = net.groups.groups[index].channels
    expected = np.zeros(channels)
    for batch, wanted in ((images[:10], labels[:10]), (images[10:], labels[10:])):
        gate = torch.ones(channels, requires_grad=True)

        def scaled(module: torch.nn.Module, args: tuple[torch.Tensor], gate: torch.Tensor = gate) -> torch.Tensor:
            x = args[0]
            if x.ndim == 4:
                return x * gate[:, None, None]
            return x * gate.repeat_interleave(x.shape[1] // len(gate))

        handle = net.model.get_submodule(reader).register_forward_pre_hook(scaled)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(net.model(batch), wanted), gate)
        handle.remove()
        expected += gradient.double().numpy() ** 2 / 2
    found = channel_choice.taylor(net.groups, net.model, images, labels)[index]
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(parameter.grad is None for parameter in net.model.parameters())


def moments(channels: int, block: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(400, channels * block, dtype=torch.float64, generator=generator)
    mixing = torch.randn(channels * block, channels * block, dtype=torch.float64, generator=generator)
    return ridged((rows @ mixing).T @ (rows @ mixing) / 400, 1e-4)


def error(moment: torch.Tensor, weight: torch.Tensor, left: list[int]) -> float:
    """Of the best fit of X W on the columns `left`, worked out from scratch."""
    fitted = torch.linalg.solve(moment[left][:, left], (moment @ weight)[left])
    full = torch.zeros_like(weight)
    full[left] = fitted
    return float(((weight - full) * (moment @ (weight - full))).sum())


def naive_order(problems: list[tuple[torch.Tensor, torch.Tensor, float]], channels: int, block: int) -> list[int]:
    left, gone = list(range(channels)), []
    while len(left) > 1:
        errors = []
        for channel in left:
            stay = [c * block + i for c in left if c != channel for i in range(block)]
            errors.append(sum(error(m, w, stay) / norm for m, w, norm in problems))
        gone.append(left.pop(int(np.argmin(errors))))
    return [*left, *reversed(gone)]


@pytest.mark.parametrize(("channels", "block", "consumers"), [(12, 1, 1), (9, 4, 1), (10, 3, 2)])
def test_downdates_find_the_order_of_refitting_from_scratch(channels: int, block: int, consumers: int) -> None:
    generator = torch.Generator().manual_seed(1)
    problems = []
    for seed in range(consumers):
        weight = torch.randn(channels * block, 5, dtype=torch.float64, generator=generator)
        problems.append((moments(channels, block, seed), weight, 2.0 + seed))
    fits = [Fit(torch.linalg.inv(m), w.clone(), channels, norm) for m, w, norm in problems]
    assert eliminate(fits, channels).tolist() == naive_order(problems, channels, block)


def test_increases_are_the_exact_errors_after_several_removals() -> None:
    moment, weight = moments(8, 2, 3), torch.randn(16, 4, dtype=torch.float64)
    fit = Fit(torch.linalg.inv(moment), weight.clone(), 8, 1.0)
    for channel in (5, 0, 7):
        fit.remove(channel)
    increases = fit.increases()
    left = [1, 2, 3, 4, 6]
    columns = [c * 2 + i for c in left for i in range(2)]
    before = error(moment, weight, columns)
    assert np.isinf(increases[[5, 0, 7]]).all()
    for channel in left:
        stay = [c * 2 + i for c in left if c != channel for i in range(2)]
        assert increases[channel] == pytest.approx(error(moment, weight, stay) - before, rel=1e-6)


def test_columns_outside_the_group_stay_in_the_fit() -> None:
    moment, weight = moments(7, 1, 4), torch.randn(7, 3, dtype=torch.float64)
    inside, outside = [1, 3, 4, 6], [0, 2, 5]
    fit = Fit(torch.linalg.inv(moment)[inside][:, inside], weight[inside], 4, 1.0)
    order = eliminate([fit], 4)
    for count in (3, 2, 1):
        kept = sorted([inside[i] for i in order[:count]] + outside)
        others = [[inside[i] for i in order[: count + 1] if i != order[j]] for j in range(count + 1)]
        errors = [error(moment, weight, sorted(other + outside)) for other in others]
        assert error(moment, weight, kept) == pytest.approx(min(errors))


def test_a_copy_of_a_channel_goes_first() -> None:
    rows = torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    rows[:, 4] = rows[:, 1] + 1e-3 * rows[:, 4]
    moment = ridged(rows.T @ rows / 300, 1e-6)
    weight = torch.ones(6, 2, dtype=torch.float64)
    order = eliminate([Fit(torch.linalg.inv(moment), weight, 6, 1.0)], 6)
    assert order[-1] in (1, 4)


@dataclass(frozen=True)
class Problem:
    """A layer with its rows; `channels` of the group come first, each with `block` columns, then fixed ones."""

    gram: LayerGram
    places: np.ndarray
    rows: Tensor
    outputs: Tensor  # behind the batch norm


def problem(channels: int, block: int, *, fixed: int = 0, outputs: int = 4, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    columns = (channels + fixed) * block
    rows = drawn(300, columns) @ drawn(columns, columns) + drawn(columns)  # correlated, with a mean
    weight, scale = drawn(columns, outputs), drawn(outputs).abs() + 0.2
    group = np.r_[np.zeros(channels), np.full(fixed, -1)].astype(np.int64)
    ids = DimensionIds(group, np.r_[np.arange(channels), np.zeros(fixed)].astype(np.int64))
    gram = LayerGram(ids, block, weight, rows.T @ rows / len(rows), rows.mean(0), len(rows), scale)
    return Problem(gram, np.arange(channels)[:, None], rows, rows @ weight * scale)


def part(subject: Problem, channel: int) -> Tensor:
    """(rows, outputs): what one channel adds to the layer's output, its share of the output's variance."""
    here = slice(channel * subject.gram.block, (channel + 1) * subject.gram.block)
    added = subject.rows[:, here] @ subject.gram.weight[here] * subject.gram.output_scale
    return added / np.sqrt(len(subject.rows) * subject.gram.output_variance)


def target(subject: Problem) -> Tensor:
    return subject.outputs / np.sqrt(len(subject.rows) * subject.gram.output_variance)


CASES = [[(7, 1)], [(6, 4)], [(6, 2), (6, 3)]]  # channels and block of each reader


def subjects(case: list[tuple[int, int]], fixed: int = 0) -> list[Problem]:
    return [problem(channels, block, fixed=fixed, seed=seed) for seed, (channels, block) in enumerate(case)]


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_what_the_channels_add(case: list[tuple[int, int]]) -> None:
    readers = subjects(case, fixed=2)
    found = contributions([(s.gram, s.places) for s in readers])
    for i in range(case[0][0]):
        toward = sum(float((part(s, i) * target(s)).sum()) for s in readers)
        assert found.with_target[i] == pytest.approx(toward, rel=1e-6)
        for j in range(case[0][0]):
            expected = sum(float((part(s, i) * part(s, j)).sum()) for s in readers)
            assert found.products[i, j] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_thinet_removes_what_disturbs_the_outputs_least(case: list[tuple[int, int]]) -> None:
    readers = subjects(case)
    order = greedy_removal(contributions([(s.gram, s.places) for s in readers])).tolist()
    gone: list[int] = []
    while len(gone) < case[0][0]:
        left = [c for c in range(case[0][0]) if c not in gone]
        lost = [sum(float(sum(part(s, g) for g in [*gone, c]).square().sum()) for s in readers) for c in left]
        gone.append(left[int(np.argmin(lost))])
    assert order == gone[::-1]


def test_two_channels_that_cancel_leave_together() -> None:
    subject = problem(5, 1)
    # A large channel and its negative copy: each alone is important, both together are nothing.
    subject.rows[:, 3] = -subject.rows[:, 1]
    subject.gram.weight[3] = subject.gram.weight[1] = subject.gram.weight[1] * 3
    gram = LayerGram(
        subject.gram.in_ids, 1, subject.gram.weight, subject.rows.T @ subject.rows / 300, subject.rows.mean(0), 300,
        subject.gram.output_scale,
    )  # fmt: skip
    found = contributions([(gram, subject.places)])
    order = greedy_removal(found).tolist()
    assert abs(order.index(1) - order.index(3)) == 1


@pytest.mark.parametrize("case", CASES)
def test_the_lasso_order_is_that_of_solving_it_for_falling_penalties(case: list[tuple[int, int]]) -> None:
    readers = subjects(case)
    inputs = np.concatenate(
        [torch.stack([part(s, c).flatten() for c in range(case[0][0])], 1).numpy() for s in readers]
    )
    wanted = np.concatenate([target(s).flatten().numpy() for s in readers])
    order = lasso(contributions([(s.gram, s.places) for s in readers])).tolist()
    assert sorted(order) == list(range(case[0][0]))
    entered: set[int] = set()
    largest = np.abs(inputs.T @ wanted).max() / len(wanted)
    for penalty in np.geomspace(largest, largest * 1e-4, 200):
        model = Lasso(alpha=penalty, fit_intercept=False, tol=1e-8, max_iter=20000).fit(inputs, wanted)
        entered |= set(np.flatnonzero(np.abs(model.coef_) > 1e-9).tolist())
        assert set(order[: len(entered)]) == entered
    assert len(entered) >= 4


def test_channels_without_a_contribution_come_last() -> None:
    subject = problem(6, 2)
    subject.gram.weight[4:6] = 0
    found = contributions([(subject.gram, subject.places)])
    assert lasso(found)[-1] == greedy_removal(found)[-1] == 2


@pytest.mark.parametrize("fixed", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_matching_pursuit_takes_what_explains_most_of_the_residual(case: list[tuple[int, int]], fixed: int) -> None:
    readers = subjects(case, fixed)
    order = matching_pursuit([(s.gram, s.places, s.gram.moment) for s in readers]).tolist()
    channels = case[0][0]
    chosen: list[int] = []
    while len(chosen) < channels:
        explained = np.zeros(channels)
        for s in readers:
            block = s.gram.block
            columns = [c * block + i for c in [*chosen, *range(channels, channels + fixed)] for i in range(block)]
            residual = s.outputs
            if columns:
                residual = residual - s.rows[:, columns] @ torch.linalg.lstsq(s.rows[:, columns], s.outputs).solution
            for c in range(channels):
                mine = s.rows[:, c * block : (c + 1) * block]
                fitted = mine @ torch.linalg.lstsq(mine, residual).solution
                explained[c] += float(fitted.square().sum()) / s.gram.output_variance
        explained[chosen] = -np.inf
        chosen.append(int(explained.argmax()))
    assert order == chosen
