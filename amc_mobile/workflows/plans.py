"""What a search chooses from, and how a chosen plan becomes a network: whole channels, or single weights.

The search itself sees counts on grids, a cost and a score. Both kinds of plans offer the same names, so that nothing
else asks which one it is.
"""

from __future__ import annotations

import fnmatch
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.cost import CostModel
from amc_mobile.channels.plan import PruningPlan
from amc_mobile.channels.structure import Layer
from amc_mobile.data import DataSplit
from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.models.evaluation import logits
from amc_mobile.pruning.magnitude import MagnitudePruner, reestimated
from amc_mobile.pruning.reconstruction import Reconstructor
from amc_mobile.pruning.refit import refit
from amc_mobile.search.features import GroupFacts
from amc_mobile.search.reward import fidelity
from amc_mobile.workflows.network import Network, default_grids
from amc_mobile.workflows.preparation import Statistics

Widths = NDArray[np.int64]
Costs = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Finished:
    """The final network of a search: `refitted`, or the one that the search scored where that is nearer to the
    original on the reward images. The scores are the two fidelities there; `images`: those that were refitted on, by
    `method`.
    """

    network: nn.Module
    method: str
    refitted: bool
    scored_fidelity: float
    refitted_fidelity: float
    images: int

    def document(self) -> dict[str, Any]:
        return {
            "kept": "refitted" if self.refitted else "one-shot", "method": self.method, "images": self.images,
            "reward_fidelity": {"one-shot": self.scored_fidelity, "refitted": self.refitted_fidelity},
        }  # fmt: skip

    @staticmethod
    def told(document: Mapping[str, Any]) -> str:
        """One line about a search's `document`."""
        scores = document["reward_fidelity"]
        there = f"{scores['refitted']:.4f} against {scores['one-shot']:.4f} on the reward images"
        done = f"{document['method']} on {document['images']} images"
        if document["kept"] == "refitted":
            return f"{done}: fidelity {there}"
        return f"kept as it was scored; {done} it loses fidelity: {there}"


def _better(
    original: nn.Module, data: DataSplit, scored: nn.Module, refitted: nn.Module, *, method: str, images: int
) -> Finished:
    wanted = logits(original, data.reward)
    first, second = (fidelity(logits(net, data.reward), wanted) for net in (scored, refitted))
    wins = second >= first
    return Finished(refitted if wins else scored, method, wins, first, second, images)


class Plans(ABC):
    """`grids`: per channel group, or per layer, the counts that it may keep; the last one is all of them.

    `set_up_s`: CPU seconds that preparing took.
    """

    grids: Sequence[Widths]
    set_up_s: float = 0.0

    @property
    def sizes(self) -> Widths:
        """What everything keeps in the original."""
        return np.array([grid[-1] for grid in self.grids], dtype=np.int64)

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
        """The final network of the search. `memory_bytes`: for what refitting keeps of all images; None: half of
        what is free."""

    @abstractmethod
    def document(self, widths: Widths) -> dict[str, Any]:
        """The plan as JSON values."""

    @abstractmethod
    def from_document(self, document: Mapping[str, Any]) -> Widths:
        """Reads `document`'s result back. Raises InvalidInput when it is something else."""

    def masks(self, widths: Widths) -> dict[str, Tensor]:
        """By parameter, the weights that stay, where single weights are pruned."""
        del widths
        return {}


class ChannelPlans(Plans):
    """Channels of channel groups go; what reads them is reconstructed. `prepare` before anything is built."""

    def __init__(self, network: Network, *, multiple: int, min_keep_ratio: float, keep: str) -> None:
        self._network = network
        self._costs = CostModel(network.module, network.groups)
        self.grids = default_grids(network, multiple=multiple, min_keep_ratio=min_keep_ratio, keep=keep)

    def prepare(self, statistics: Statistics) -> None:
        started = time.process_time()
        self._statistics = statistics
        self.reconstructor: Reconstructor = statistics.reconstructor(self._network)
        self.set_up_s = statistics.cpu_s + time.process_time() - started

    def facts(self) -> list[GroupFacts]:
        layers = {layer.name: layer for layer in self._network.groups.layers}
        groups = self._network.groups.groups
        return [_facts(group.name, layers[group.producers[0]]) for group in groups]

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
        scored, used = self.build(widths), list[int]()
        refitted = refit(
            self._network.module, self._network.groups, self.reconstructor.kept(widths), self._statistics.calibration,
            start=scored, seed=seed, memory_bytes=memory_bytes, on_images=used.append,
        )  # fmt: skip
        return _better(self._network.module, data, scored, refitted, method="refitted", images=used[0])

    def document(self, widths: Widths) -> dict[str, Any]:
        plan = PruningPlan.from_widths(self._network.groups.channels, widths)
        return plan.with_order(self._statistics.order).to_document()

    def from_document(self, document: Mapping[str, Any]) -> Widths:
        plan = PruningPlan.from_document(document)
        if dict(plan.channels) != dict(self._network.groups.channels):
            raise InvalidInput("the plan is for another network: its channel groups differ")
        return plan.widths


class WeightPlans(Plans):
    """Single weights of every convolution and linear layer go, the smallest of each layer; its shape stays."""

    def __init__(self, network: Network, *, min_density: float, keep: str) -> None:
        started = time.process_time()
        self._network = network
        self.pruner = MagnitudePruner(network.module, network.groups)
        self.grids = self.pruner.grids(min_density)
        for pattern in [pattern for pattern in keep.replace(" ", "").split(",") if pattern]:
            whole = [i for i, name in enumerate(self.pruner.names) if fnmatch.fnmatchcase(name, pattern)]
            if not whole:
                raise InvalidConfig(f"--keep {pattern!r} names no layer", next_step=", ".join(self.pruner.names))
            for i in whole:
                self.grids[i] = self.grids[i][-1:]
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

    def document(self, widths: Widths) -> dict[str, Any]:
        names = self.pruner.names
        return {
            "weights": {name: int(size) for name, size in zip(names, self.pruner.sizes, strict=True)},
            "kept_weights": {name: int(count) for name, count in zip(names, widths, strict=True)},
        }

    def from_document(self, document: Mapping[str, Any]) -> Widths:
        known = self.document(self.pruner.sizes)["weights"]
        kept = document.get("kept_weights")
        if document.get("weights") != known or not isinstance(kept, dict) or list(kept) != list(known):
            raise InvalidInput("not a plan of this network's weights: its layers differ")
        if not all(isinstance(n, int) and 1 <= n <= known[name] for name, n in kept.items()):
            raise InvalidInput("the plan keeps weights that the network does not have")
        return np.array(list(kept.values()), dtype=np.int64)

    def masks(self, widths: Widths) -> dict[str, Tensor]:
        return self.pruner.masks(widths)


def _facts(name: str, layer: Layer) -> GroupFacts:
    return GroupFacts(
        name, len(layer.out_ids), len(layer.in_ids), layer.out_size[0], layer.out_size[1], layer.stride[0],
        layer.kernel_size[0],
    )  # fmt: skip


def keep_ratios(plan: Mapping[str, Any]) -> dict[str, float]:
    """By group or layer: the share that a saved plan of either kind keeps."""
    whole, kept = ("weights", "kept_weights") if "kept_weights" in plan else ("channels", "kept_channels")
    return {name: plan[kept][name] / size for name, size in plan[whole].items()}
