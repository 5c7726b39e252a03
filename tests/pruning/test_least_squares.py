"""Matrices in memory and in files give the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from traced_networks import halves, subject

from amc_mobile.channels.plan import CHANNEL_CHOICES
from amc_mobile.pruning import least_squares as module
from amc_mobile.pruning import program as program_module
from amc_mobile.pruning.channel_choice import channel_order
from amc_mobile.pruning.gram import collect_gram
from amc_mobile.pruning.least_squares import UNKNOWN_BYTES, Matrices, available_bytes
from amc_mobile.pruning.program import batches_within, peak_bytes
from amc_mobile.pruning.reconstruction import Reconstructor


def test_spilled_matrices_give_the_same_orders_and_weights(tmp_path: Path) -> None:
    net = subject("Flattened")
    labelled = (net.images, torch.arange(len(net.images)) % 5)
    widths = halves(net.groups)
    found = []
    for limit in (10**9, 20_000, 0):
        kept = Matrices(limit, tmp_path)
        gram = collect_gram(net.model, net.groups, net.images, matrices=kept)
        orders = [channel_order(net.groups, net.model, gram, method=m, labelled=labelled) for m in CHANNEL_CHOICES]
        state = Reconstructor(net.model, net.groups, gram, orders[0]).build(widths).state_dict()
        found.append((orders, state))
        total = sum(layer.moment.nbytes for layer in gram.layers.values())
        assert kept.spilled_bytes == {10**9: 0, 0: total}.get(limit, kept.spilled_bytes)
        assert limit != 20_000 or 0 < kept.spilled_bytes < total
    for orders, state in found[1:]:
        for a, b in zip(orders, found[0][0], strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in b)
        assert all(torch.equal(state[name], value) for name, value in found[0][1].items())
    assert list(tmp_path.iterdir()) == []


def test_room_is_given_until_it_is_used_up(tmp_path: Path) -> None:
    kept = Matrices(1000, tmp_path / "new")
    first, second = kept.zeros(10, 10), torch.ones(10, 10, dtype=torch.float64)
    assert kept.branch().keep(torch.ones(5, 5, dtype=torch.float64)).nbytes == 200
    assert kept.spilled_bytes == 0
    copied = kept.keep(second)
    assert copied is not second
    assert torch.equal(copied, second)
    assert kept.spilled_bytes == 800
    copied += first + 1
    assert torch.equal(copied, second + 1)


def test_the_automatic_limit_is_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 1600)
    kept = Matrices()
    kept.zeros(10, 10)
    assert kept.spilled_bytes == 0
    kept.zeros(1, 1)
    assert kept.spilled_bytes == 8


@pytest.mark.parametrize(
    ("limit", "expected"), [("max\n", 3000 * 1024), ("2000000\n", 1_500_000), ("100000\n", 0), (None, 3000 * 1024)]
)
def test_a_container_bounds_what_is_free(
    limit: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 3000 kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("500000\n")
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / Path(path).name)
    assert available_bytes() == expected
    (tmp_path / "meminfo").unlink()
    if limit is None:
        assert available_bytes() == UNKNOWN_BYTES


def test_batches_shrink_where_one_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    net = subject("PaddedShortcut")
    monkeypatch.setattr(program_module, "BATCH_SIZE", 30)
    whole, program = batches_within(net.model, net.images)
    assert [len(batch) for batch in whole] == [30, 30]
    peak = peak_bytes(program)
    monkeypatch.setattr(program_module, "ACTIVATION_BYTES", peak // 3)
    batches, small = batches_within(net.model, net.images)
    assert peak_bytes(small) <= peak // 3
    assert batches.size * len(batches) == 60
