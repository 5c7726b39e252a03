"""Scores plans on the reward images: what an episode of a search costs."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.data import DataSplit, few
from amc_mobile.models.evaluation import bf16_is_fast, logits
from amc_mobile.pruning.fold import find_folding, folded
from amc_mobile.search.budget import Unit
from amc_mobile.search.reward import GUARANTEED, Outcome, fidelity, reward_of
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.plans import Plans

Widths = NDArray[np.int64]


# With AVX2 0.7 of the time that batches of 64 take: what a layer writes is still in the cache when it is read.
BATCH_SIZE = 32


class PlanScorer:
    """Scores plans: builds the pruned network and compares it with the original on the reward images.

    Both are computed in bfloat16 where the CPU is fast at it, which leaves the order of plans as it is. `images`: how
    many of the reward images are used, None: all. `bf16`: None asks the CPU.
    """

    def __init__(
        self, network: Network, data: DataSplit, plans: Plans, reward: str,
        *, images: int | None = None, bf16: bool | None = None,
    ) -> None:  # fmt: skip
        self.images = data.reward if images is None else few(data.reward, images)
        self._labels, self._bf16 = self.images.labels, bf16_is_fast() if bf16 is None else bf16
        self._plans, self._reward, self._task = plans, reward, network.task
        self._original_macs = float(plans.macs(plans.sizes))
        self.folding = find_folding(network.module, self.images.normalised(slice(0, 1)))
        self.reference = self._logits(folded(network.module, self.folding))
        self.original_top1 = self._task.accuracy(self.reference, self._labels)
        self.cost_of: Callable[[Widths], float] = lambda widths: float(plans.macs(widths))
        self.unit: Unit = "macs"

    def __call__(self, widths: Widths) -> Outcome:
        if self._reward == "macs":
            return self._size_alone(widths)
        started = time.process_time()
        model = folded(self._plans.build(widths), self.folding)
        built = time.process_time()
        outputs = self._logits(model)
        seconds = {"reconstruction": built - started, "evaluation": time.process_time() - built}
        accuracy, closeness = self._task.accuracy(outputs, self._labels), fidelity(outputs, self.reference)
        macs, parameters = float(self._plans.macs(widths)), float(self._plans.parameters(widths))
        unit = GUARANTEED.get(self._reward, self.unit)
        # The reward's own unit, where it is not the budget's.
        cost = self.cost_of(widths) if unit == self.unit else {"macs": macs, "parameters": parameters}.get(unit, 0.0)
        reward = reward_of(self._reward, top1=accuracy, fidelity=closeness, cost=cost, unit=unit)
        return Outcome(reward, accuracy, closeness, macs, parameters, seconds)

    def top1(self, model: nn.Module) -> float:
        """The accuracy of a finished network on the reward images, as that of the original and of plans is taken."""
        return self._task.accuracy(self._logits(folded(model, self.folding)), self._labels)

    def _logits(self, model: nn.Module) -> Tensor:
        channels_last = self.folding.channels_last
        return logits(model, self.images, BATCH_SIZE, channels_last=channels_last, bf16=self._bf16)

    def _size_alone(self, widths: Widths) -> Outcome:
        """No image decides anything."""
        macs, parameters = float(self._plans.macs(widths)), float(self._plans.parameters(widths))
        kept = macs / self._original_macs
        reward = reward_of(self._reward, top1=None, fidelity=None, cost=macs, unit="macs", macs_kept=kept)
        return Outcome(reward, None, None, macs, parameters, {"reconstruction": 0.0, "evaluation": 0.0})

    def measured_reward(self, outcome: Outcome, p50_ms: float) -> float:
        """The reward of a scored plan once its latency is measured: only rewards that hold the latency change."""
        if GUARANTEED.get(self._reward, self.unit) != "ms":
            return outcome.reward
        return reward_of(self._reward, top1=outcome.top1, fidelity=outcome.fidelity, cost=p50_ms, unit="ms")
