"""What a search chooses from: how plans become networks, channels or single weights, and how they are scored."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.plan import PruningPlan, WeightPlan, multiple_for
from amc_mobile.channels.structure import CostModel, Ids, Layer
from amc_mobile.data.images import ImageSet
from amc_mobile.data.split import DataSplit, few
from amc_mobile.errors import InvalidInput
from amc_mobile.export.converters import calibration_choice
from amc_mobile.formats import FLOAT32, INT8
from amc_mobile.models.task import bf16_is_fast, logits
from amc_mobile.pruning.channel_choice import channel_order
from amc_mobile.pruning.fake_quantize import fake_quantized, find_rounding
from amc_mobile.pruning.gram import GramStatistics, collect_gram
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.pruning.magnitude import MagnitudePruner, reestimated
from amc_mobile.pruning.reconstruction import Reconstructor, find_folding, folded, refit
from amc_mobile.search.budget import Unit
from amc_mobile.search.policy import GroupFacts
from amc_mobile.search.reward import GUARANTEED, Outcome, fidelity, reward_of
from amc_mobile.workflows.network import Network, load_network, named_by
from amc_mobile.workflows.runs import RefitRecord
from amc_mobile.workflows.workspace import Progress, Settings, Workspace


@dataclass(frozen=True, eq=False)
class Statistics:
    """`calibration`: the images they are of; `cpu_s`: what collecting and ordering took."""

    calibration: ImageSet
    gram: GramStatistics
    order: Mapping[str, Ids]
    cpu_s: float

    def reconstructor(self, network: Network) -> Reconstructor:
        """A new one: solved weights are not handed from one search to the next, so that each pays for its own."""
        return Reconstructor(network.module, network.groups, self.gram, self.order)


class Preparations:
    """Remembers the last network and its statistics; give the same object to searches that differ in policy only.

    `opened`: a network that is open already.
    """

    def __init__(self, opened: Network | None = None) -> None:
        self._network = opened
        self._statistics: tuple[object, Statistics] | None = None

    def network(self, space: Workspace, settings: Settings) -> Network:
        network = load_network(space, settings, self._network)
        if network is not self._network:
            self._network, self._statistics = network, None
        return network

    def statistics(
        self, network: Network, data: DataSplit, *, channel_choice: str, seed: int, matrices: Matrices,
        progress: Progress,
    ) -> Statistics:  # fmt: skip
        key = (id(network), data.calibration_indices, channel_choice, seed)
        if self._statistics is None or self._statistics[0] != key:
            started = time.process_time()
            progress("prepare reconstruction", 0, 2)
            calibration = data.calibration
            gram = collect_gram(network.module, network.groups, calibration, seed=seed, matrices=matrices)
            progress("prepare reconstruction", 1, 2, "channel order")
            order = channel_order(
                network.groups, network.module, gram, method=channel_choice,
                labelled=(calibration.normalised(), calibration.labels) if channel_choice == "taylor" else None,
            )  # fmt: skip
            progress("prepare reconstruction", 2, 2)
            self._statistics = (key, Statistics(calibration, gram, order, time.process_time() - started))
        return self._statistics[1]


Widths = NDArray[np.int64]
Costs = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Finished:
    """The final network of a search, in evaluation mode, and how it was chosen."""

    network: nn.Module
    refit: RefitRecord


def _better(
    original: nn.Module, data: DataSplit, scored: nn.Module, refitted: nn.Module, *, method: str, images: int
) -> Finished:
    """The one of two networks that is nearer to the original on the reward images. `images`: refitted on."""
    reference = logits(original, data.reward)
    networks = {"one-shot": scored, "refitted": refitted}
    fidelities = {name: fidelity(logits(network, data.reward), reference) for name, network in networks.items()}
    kept = "refitted" if fidelities["refitted"] >= fidelities["one-shot"] else "one-shot"
    return Finished(networks[kept], RefitRecord(kept, method, images, fidelities))


class Plans(ABC):
    """`grids`: per channel group, or per layer, the counts that it may keep; the last one is all of them.

    `set_up_s`: CPU seconds that preparing took.
    """

    grids: Sequence[Widths]
    set_up_s: float

    @property
    def sizes(self) -> Widths:
        """What everything keeps in the original."""
        return np.array([grid[-1] for grid in self.grids], dtype=np.int64)

    def prepared(self, collect: Callable[[], Statistics]) -> Plans:
        """These plans, ready for all that needs images. `collect` is called where their statistics are needed."""
        del collect
        return self

    def finer_multiples(self, multiple: int) -> dict[str, int]:
        """By group: what narrow groups keep multiples of, which would have too few choices with `multiple`."""
        del multiple
        return {}

    def kept(self, widths: Widths) -> dict[str, Ids]:
        """By group, the channels that stay, where whole channels go."""
        del widths
        return {}

    def masks(self, widths: Widths) -> dict[str, Tensor]:
        """By parameter, the weights that stay, where single weights are pruned."""
        del widths
        return {}

    @abstractmethod
    def facts(self) -> list[GroupFacts]: ...

    @abstractmethod
    def errors(self) -> list[Costs]:
        """For each entry of each grid, what the network loses by it alone; 0 at the last."""

    @abstractmethod
    def macs(self, widths: Widths) -> Costs:
        """(...): multiply-accumulates that the network's exported file computes. `widths`: (..., groups)."""

    @abstractmethod
    def parameters(self, widths: Widths) -> Costs:
        """(...): parameters that are left."""

    @abstractmethod
    def build(self, widths: Widths) -> nn.Module:
        """The network as the search scores it, in evaluation mode."""

    @abstractmethod
    def finished(self, widths: Widths, data: DataSplit, *, seed: int, memory_bytes: int | None = None) -> Finished:
        """The final network. `memory_bytes`: for what refitting keeps of all images; None: half of what is free."""

    @abstractmethod
    def plan(self, widths: Widths) -> PruningPlan | WeightPlan:
        """The plan to be saved."""

    @abstractmethod
    def widths(self, plan: PruningPlan | WeightPlan) -> Widths:
        """(groups,) of a saved plan. Raises InvalidInput for one of another network or granularity."""


class ChannelPlans(Plans):
    """Channels of channel groups go; what reads them is reconstructed, which takes `statistics`."""

    def __init__(self, network: Network, grids: Sequence[Widths], statistics: Statistics | None = None) -> None:
        started = time.process_time()
        self.grids = grids
        self._network, self._statistics = network, statistics
        self._costs = CostModel(network.module, network.groups)
        self._reconstructor = statistics.reconstructor(network) if statistics is not None else None
        self.set_up_s = (statistics.cpu_s if statistics is not None else 0.0) + time.process_time() - started

    def prepared(self, collect: Callable[[], Statistics]) -> ChannelPlans:
        return ChannelPlans(self._network, self.grids, collect())

    @property
    def reconstructor(self) -> Reconstructor:
        assert self._reconstructor is not None, "these plans have no statistics"
        return self._reconstructor

    def finer_multiples(self, multiple: int) -> dict[str, int]:
        return {
            name: used
            for (name, channels), grid in zip(self._network.groups.channels.items(), self.grids, strict=True)
            if len(grid) > 1 and (used := multiple_for(channels, multiple)) != multiple
        }

    def kept(self, widths: Widths) -> dict[str, Ids]:
        return self.reconstructor.kept(widths)

    def facts(self) -> list[GroupFacts]:
        layers = {layer.name: layer for layer in self._network.groups.layers}
        return [_facts(group.name, layers[group.producers[0]]) for group in self._network.groups.groups]

    def errors(self) -> list[Costs]:
        return [self.reconstructor.group_errors(group, grid) for group, grid in enumerate(self.grids)]

    def macs(self, widths: Widths) -> Costs:
        return self._costs.macs(widths)

    def parameters(self, widths: Widths) -> Costs:
        return self._costs.parameters(widths)

    def build(self, widths: Widths) -> nn.Module:
        return self.reconstructor.build(widths)

    def finished(self, widths: Widths, data: DataSplit, *, seed: int, memory_bytes: int | None = None) -> Finished:
        """Refitted layer by layer on the calibration images, from the weights that were scored."""
        assert self._statistics is not None
        scored, used = self.build(widths), list[int]()
        refitted = refit(
            self._network.module, self._network.groups, self.kept(widths), self._statistics.calibration,
            start=scored, seed=seed, memory_bytes=memory_bytes, on_images=used.append,
        )  # fmt: skip
        return _better(self._network.module, data, scored, refitted, method="refitted", images=used[0])

    def plan(self, widths: Widths) -> PruningPlan:
        assert self._statistics is not None
        return PruningPlan.from_widths(self._network.groups.channels, widths).with_order(self._statistics.order)

    def widths(self, plan: PruningPlan | WeightPlan) -> Widths:
        if not isinstance(plan, PruningPlan) or dict(plan.channels) != dict(self._network.groups.channels):
            raise InvalidInput("the plan is for another network: its channel groups differ")
        return plan.widths


class WeightPlans(Plans):
    """Single weights of every convolution and linear layer go, the smallest of each layer; its shape stays."""

    def __init__(self, network: Network, *, min_density: float, keep: str) -> None:
        started = time.process_time()
        self._network = network
        self.pruner = MagnitudePruner(network.module, network.groups)
        self.grids = self.pruner.grids(min_density)
        whole = named_by(filter(None, keep.replace(" ", "").split(",")), self.pruner.names, "layer")
        self.grids = [
            grid[-1:] if name in whole else grid for name, grid in zip(self.pruner.names, self.grids, strict=True)
        ]
        self._dense_macs = float(CostModel(network.module, network.groups).macs(network.groups.sizes))
        self.set_up_s = time.process_time() - started

    def facts(self) -> list[GroupFacts]:
        layers = {layer.name: layer for layer in self._network.groups.layers}
        return [_facts(name, layers[name]) for name in self.pruner.names]

    def errors(self) -> list[Costs]:
        return [self.pruner.lost_energy(layer, grid) for layer, grid in enumerate(self.grids)]

    def macs(self, widths: Widths) -> Costs:
        """Zeros are multiplied like any other weight."""
        return np.full(np.shape(widths)[:-1], self._dense_macs)

    def parameters(self, widths: Widths) -> Costs:
        return self.pruner.parameters(widths)

    def build(self, widths: Widths) -> nn.Module:
        return self.pruner.build(widths)

    def finished(self, widths: Widths, data: DataSplit, *, seed: int, memory_bytes: int | None = None) -> Finished:
        """With the batch norms' statistics re-estimated on the calibration images."""
        del seed, memory_bytes
        built = self.build(widths)
        tuned = reestimated(built, data.calibration.normalised())
        return _better(
            self._network.module, data, built, tuned,
            method="with re-estimated batch norms", images=len(data.calibration),
        )  # fmt: skip

    def plan(self, widths: Widths) -> WeightPlan:
        whole, kept = (
            {name: int(count) for name, count in zip(self.pruner.names, counts, strict=True)}
            for counts in (self.pruner.sizes, widths)
        )
        return WeightPlan(whole, kept)

    def widths(self, plan: PruningPlan | WeightPlan) -> Widths:
        if not isinstance(plan, WeightPlan) or plan.weights != self.plan(self.pruner.sizes).weights:
            raise InvalidInput("not a plan of this network's weights: its layers differ")
        return np.array(list(plan.kept_weights.values()), dtype=np.int64)

    def masks(self, widths: Widths) -> dict[str, Tensor]:
        return self.pruner.masks(widths)


def _facts(name: str, layer: Layer) -> GroupFacts:
    return GroupFacts(
        name, len(layer.out_ids), len(layer.in_ids), layer.out_size[0], layer.out_size[1], layer.stride[0],
        layer.kernel_size[0],
    )  # fmt: skip


# With AVX2 0.7 of the time that batches of 64 take: what a layer writes is still in the cache when it is read.
BATCH_SIZE = 32


class PlanScorer:
    """Scores plans: builds the pruned network and compares it with the original on the reward images.

    Both are computed in bfloat16 where the CPU is fast at it, which leaves the order of plans as it is. `images`: how
    many of the reward images are used, None: all. `bf16`: None asks the CPU. `cost_of`: of a plan, in `unit`, for
    rewards that hold the budget's cost; None: its MACs. `precision`: "int8" rounds plans as int8 files do, with ranges
    from calibration images; the original stays what they are compared with.
    """

    def __init__(
        self, network: Network, data: DataSplit, plans: Plans, reward: str,
        *, images: int | None = None, bf16: bool | None = None, unit: Unit = "macs",
        cost_of: Callable[[Widths], float] | None = None, precision: str = FLOAT32,
    ) -> None:  # fmt: skip
        self.images = data.reward if images is None else few(data.reward, images)
        self._labels, is_int8 = self.images.labels, precision == INT8
        self._bf16 = not is_int8 and (bf16_is_fast() if bf16 is None else bf16)
        self._plans, self._reward, self._task = plans, reward, network.task
        self._original_macs = float(plans.macs(plans.sizes))
        example = self.images.normalised(slice(0, 1))
        self._rounding = find_rounding(network.module, example) if is_int8 else None
        self._ranges = data.calibration.subset(calibration_choice(len(data.calibration)) if is_int8 else [])
        self.folding = self._rounding.folding if self._rounding else find_folding(network.module, example)
        self.reference = self._logits(folded(network.module, self.folding))
        self.original_top1 = self.top1(network.module) if self._rounding else self._accuracy(self.reference)
        self._cost_of = cost_of or (lambda widths: float(plans.macs(widths)))
        self._unit: Unit = unit

    def __call__(self, widths: Widths) -> Outcome:
        macs, parameters = float(self._plans.macs(widths)), float(self._plans.parameters(widths))
        if self._reward == "macs":  # no image decides anything
            share = macs / self._original_macs
            reward = reward_of("macs", top1=None, fidelity=None, cost=macs, unit="macs", macs_kept=share)
            return Outcome(reward, None, None, macs, parameters, {"reconstruction": 0.0, "evaluation": 0.0})
        started = time.process_time()
        model = self._scored(self._plans.build(widths))
        built = time.process_time()
        outputs = self._logits(model)
        seconds = {"reconstruction": built - started, "evaluation": time.process_time() - built}
        accuracy, closeness = self._accuracy(outputs), fidelity(outputs, self.reference)
        unit = GUARANTEED.get(self._reward, self._unit)
        # The reward's own unit, where it is not the budget's.
        cost = self._cost_of(widths) if unit == self._unit else {"macs": macs, "parameters": parameters}.get(unit, 0.0)
        reward = reward_of(self._reward, top1=accuracy, fidelity=closeness, cost=cost, unit=unit)
        return Outcome(reward, accuracy, closeness, macs, parameters, seconds)

    def top1(self, model: nn.Module) -> float:
        """The accuracy of a finished network on the reward images, as that of the original and of plans is taken."""
        return self._accuracy(self._logits(self._scored(model)))

    def _accuracy(self, outputs: Tensor) -> float:
        return self._task.accuracy(outputs, self._labels)

    def _scored(self, model: nn.Module) -> nn.Module:
        """The form in which a network is scored."""
        if self._rounding is None:
            return folded(model, self.folding)
        return fake_quantized(model, self._rounding, self._ranges)

    def _logits(self, model: nn.Module) -> Tensor:
        channels_last = self.folding.channels_last
        return logits(model, self.images, BATCH_SIZE, channels_last=channels_last, bf16=self._bf16)

    def measured_reward(self, outcome: Outcome, p50_ms: float) -> float:
        """The reward of a scored plan once its latency is measured: only rewards that hold the latency change."""
        if GUARANTEED.get(self._reward, self._unit) != "ms":
            return outcome.reward
        return reward_of(self._reward, top1=outcome.top1, fidelity=outcome.fidelity, cost=p50_ms, unit="ms")
