"""What searches of one network share: the loaded network, its Gram matrices and the order of channels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from amc_mobile.channels.ids import Ids
from amc_mobile.data import DataSplit, ImageSet
from amc_mobile.pruning.gram import GramStatistics, collect_gram
from amc_mobile.pruning.importance import channel_order
from amc_mobile.pruning.matrices import Matrices
from amc_mobile.pruning.reconstruction import Reconstructor
from amc_mobile.workflows.network import Network, load_network
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings, Workspace


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
    """Remembers the last network and its statistics; give the same object to searches that differ in policy only."""

    def __init__(self) -> None:
        self._network: tuple[object, Network] | None = None
        self._statistics: tuple[object, Statistics] | None = None

    def network(self, space: Workspace, settings: Settings) -> Network:
        key = (space.folder, settings)
        if self._network is None or self._network[0] != key:
            self._network, self._statistics = (key, load_network(space, settings)), None
        return self._network[1]

    def statistics(
        self,
        network: Network,
        data: DataSplit,
        *,
        channel_choice: str,
        seed: int,
        matrices: Matrices,
        progress: Progress,
    ) -> Statistics:
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
            found = Statistics(calibration, gram, order, time.process_time() - started)
            self._statistics = (key, found)
        return self._statistics[1]
