"""What a search, a comparison and a table of sensitivities are asked for: checked before anything heavy is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING

from amc_mobile.errors import InvalidConfig
from amc_mobile.formats import FLOAT32, INT8
from amc_mobile.workflows.workspace import ADVANCED, BUDGET, SEARCH, check_ranges, option

if TYPE_CHECKING:
    from amc_mobile.search.budget import Unit

# How many images the fidelity is taken on where the number is left to us. They rank plans of ResNet-20 and ResNet-56
# as 256 do but for 0.01 of Spearman's correlation, in half the time (scripts/benchmarks/episode_cost.py).
FIDELITY_IMAGES = 128
GRANULARITIES = ("channel", "weight")
# Of a search and of a table of sensitivities.
_channel_choice = partial(
    option, "backward", "How a group's channels are chosen: {channel_choices}; AMC's is l1.", ADVANCED
)
_calibration_images = partial(
    option, 1500, "Images for the least squares, at most a third of the training images.", ADVANCED, least=1
)
_reward_images = partial(  # None: those that `train` leaves out
    option, None,
    "Images for the reward, apart from all others; at most a third of the training images. Default: 256, at most a "
    "tenth.",
    ADVANCED, least=1,
)  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What a plan may cost at most; several at once must all be met, and a plan's cost is counted in the first one.

    `latency_ms`: p50, measured; the ratios are shares of the original's latency, MACs and parameters, in (0, 1].
    Raises InvalidConfig for none at all, for two of one latency, and for values that cannot be.

        amc.Budget(latency_ms=30), amc.Budget(latency_ratio=0.5, params_ratio=0.7)
    """

    latency_ms: float | None = option(None, "p50 in ms, measured, e.g. 30.", BUDGET)
    latency_ratio: float | None = option(None, "Share of the original's latency, e.g. 0.5.", BUDGET)
    macs_ratio: float | None = option(None, "Share of the original's MACs.", BUDGET)
    params_ratio: float | None = option(None, "Share of the original's parameters.", BUDGET)

    def __post_init__(self) -> None:
        limits = self.limits
        if not limits:
            flags = ", ".join(f"--{field.name.replace('_', '-')}" for field in fields(Budget))
            raise InvalidConfig("no budget was given", next_step=f"pass one or more of {flags}")
        if "latency-ms" in limits and "latency-ratio" in limits:
            raise InvalidConfig("--latency-ms and --latency-ratio both limit one latency", next_step="pass one of them")
        for name, value in limits.items():
            if name == "latency-ms" and not 0 < value < math.inf:
                raise InvalidConfig(
                    f"--latency-ms {value:g}: a latency is above 0 ms",
                    next_step="pass milliseconds, e.g. --latency-ms 5",
                )
            if name != "latency-ms" and not 0 < value <= 1:
                raise InvalidConfig(
                    f"--{name} {value:g}: a share of the original is above 0 and at most 1",
                    next_step=f"for half of the original: --{name} 0.5",
                )

    @property
    def limits(self) -> dict[str, float]:
        """Those that are asked for, by the names of their flags."""
        values = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(Budget)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def asked_of_model(self) -> list[str]:
        """As the user put them, e.g. `latency-ratio 0.5`; the first is the one that costs are counted in."""
        return [f"{name} {value:g}" for name, value in self.limits.items()]

    @property
    def unit(self) -> Unit:
        """Of a plan's cost."""
        if self.latency_ms is not None or self.latency_ratio is not None:
            return "ms"
        return "macs" if self.macs_ratio is not None else "parameters"


@dataclass(frozen=True)
class SearchConfig(Budget):
    """A budget and how to search within it; `amc-mobile search --help` explains the fields."""

    policy: str = option(
        "critic", "How plans are proposed: {policies}:PATH. The paper's agent is ddpg-sequential.", SEARCH
    )
    reward: str = option("fidelity", "What makes a plan good: {rewards}.", SEARCH)
    reward_precision: str = option(
        FLOAT32, "float32, or int8: plans are scored with weights and activations rounded as int8 files do.", ADVANCED,
        later=True,
    )  # fmt: skip
    episodes: int = option(300, "Plans to try.", SEARCH, least=1)
    channel_choice: str = _channel_choice()
    measure_every: int = option(50, "Measure every K episodes; 0: new bests only.", ADVANCED, least=0)
    min_keep_ratio: float = option(0.2, "Lowest share of channels kept per group, of weights per convolution.", SEARCH)
    # None: what the device was found to prefer.
    multiple: int | None = option(None, "Kept channels are multiples of this, e.g. 16.", SEARCH, least=1)
    calibration_images: int = _calibration_images()
    reward_images: int | None = _reward_images()
    max_loss: float | None = option(  # on the reward images
        None,
        "Allowed loss of accuracy, e.g. 0.01: the search finds the cheapest plan within it; exit 3 if the refitted "
        "network loses more.",
        BUDGET,
    )
    granularity: str = option(
        "channel",
        "What is pruned: {granularities}; weight: single weights, the smallest first, e.g. with --params-ratio 0.3.",
        SEARCH,
    )
    keep: str = option("", "Groups that stay whole: names, patterns, or residual, separated by commas.", SEARCH)
    also: str = option(
        "", "DEVICE:MS: a latency budget on another device, by its own table, e.g. galaxy:35. Repeatable.", BUDGET,
        repeatable=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        # Here: they load NumPy, which --help need not wait for.
        from amc_mobile.channels.plan import CHANNEL_CHOICES
        from amc_mobile.search.policy import POLICIES
        from amc_mobile.search.reward import GUARANTEED, REWARDS

        name, _, file = self.policy.partition(":")
        check_choice("--policy", name, POLICIES)
        if (name == "from-file") != bool(file):
            raise InvalidConfig(f"--policy {self.policy!r} does not say which plan", next_step="from-file:PATH")
        check_choice("--reward", self.reward, REWARDS)
        check_choice("--reward-precision", self.reward_precision, (FLOAT32, INT8))
        check_choice("--channel-choice", self.channel_choice, CHANNEL_CHOICES)
        check_choice("--granularity", self.granularity, GRANULARITIES)
        if self.reward in GUARANTEED and not self.limits:
            # These rewards need no budget: all of the original's cost is allowed, in the reward's unit.
            flag = {"macs": "macs_ratio", "parameters": "params_ratio", "ms": "latency_ratio"}[GUARANTEED[self.reward]]
            object.__setattr__(self, flag, 1.0)
        super().__post_init__()
        if asked_devices(self.also) and self.unit != "ms":
            raise InvalidConfig(
                "--also is a further latency budget, and there is none for --device",
                next_step="pass --latency-ms or --latency-ratio too, or name that device with --device",
            )
        check_ranges(self)
        if not 0 < self.min_keep_ratio <= 1:
            raise InvalidConfig(
                f"--min-keep-ratio {self.min_keep_ratio:g}: a share of a group's channels is above 0 and at most 1",
                next_step="for a fifth: --min-keep-ratio 0.2",
            )
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise InvalidConfig(f"--max-loss {self.max_loss} is not a share of the images", next_step="try 0.01")
        if self.max_loss is not None and self.reward == "macs":
            raise InvalidConfig("the reward macs looks at no image", next_step="leave --max-loss out, or --reward top1")
        if self.granularity == "weight" and self.unit != "parameters":
            raise InvalidConfig(
                "pruning single weights saves parameters; MACs and latency of the network's file stay what they are",
                next_step="pass --params-ratio",
            )
        if GUARANTEED.get(self.reward) == "ms" and self.unit != "ms":
            raise InvalidConfig(f"the reward {self.reward} needs a latency budget", next_step="pass --latency-ratio 1")

    @property
    def scored_images(self) -> int | None:
        """How many of the reward images plans are scored on; None: all, as where the accuracy on them counts."""
        accuracy_counts = self.reward != "fidelity" or self.max_loss is not None
        return None if accuracy_counts or self.reward_images is not None else FIDELITY_IMAGES

    @property
    def asked(self) -> str:
        """The budgets as the user put them, e.g. `latency-ratio 0.5`, `latency-ms 30 macs-ratio 0.6 also galaxy:35`."""
        return " ".join([*self.asked_of_model, *(f"also {device}:{ms:g}" for device, ms in asked_devices(self.also))])


@dataclass(frozen=True)
class CompareConfig:
    """`search` is what all runs share; its policy is not looked at. `budgets`: ratios in place of its first one."""

    search: SearchConfig
    policies: tuple[str, ...] = option(
        ("uniform", "random", "ddpg", "evolution", "critic", "dp"),
        "Any of {policies}:PATH, separated by commas.",
        SEARCH,
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds, separated by commas.", SEARCH)
    budgets: tuple[float, ...] = option(
        (), "Ratios in place of the first budget's, for the front, e.g. 0.3,0.5,0.7.", BUDGET
    )
    finetune_epochs: int = option(0, "Epochs of fine-tuning per plan; 0 skips it.", SEARCH, least=0)
    finetune_learning_rate: float | None = None  # None: what `finetune` takes

    def __post_init__(self) -> None:
        if not self.policies or not self.seeds:
            raise InvalidConfig(
                "a comparison needs at least one policy and one seed", next_step="--policies uniform,critic --seeds 0"
            )
        check_ranges(self)
        self.searches()  # each is checked as it is made
        if self.budgets and self.search.latency_ms is not None:
            raise InvalidConfig("several budgets are ratios", next_step="use --latency-ratio, --macs-ratio or the like")

    def searches(self) -> list[tuple[SearchConfig, int]]:
        """(search, seed) of every run; runs of one seed next to each other, which share their preparation."""
        return [
            (replace(search, policy=policy), seed)
            for seed in self.seeds
            for search in self._by_budget()
            for policy in self.policies
        ]

    def _by_budget(self) -> list[SearchConfig]:
        search = self.search
        if not self.budgets:
            return [search]
        kind = next(iter(search.limits)).replace("-", "_")  # of the first budget
        return [replace(search, **{kind: ratio}) for ratio in self.budgets]  # type: ignore[arg-type]


@dataclass(frozen=True)
class SensitivityConfig:
    """`ratios`: keep ratios in (0, 1), rounded up to `multiple` channels. The rest as in a search."""

    ratios: tuple[float, ...] = option((0.25, 0.5, 0.75), "Keep ratios, separated by commas.", SEARCH)
    multiple: int = option(1, "Kept channels are rounded up to multiples of this.", SEARCH, least=1)
    channel_choice: str = _channel_choice()
    calibration_images: int = _calibration_images()
    reward_images: int | None = _reward_images()

    def __post_init__(self) -> None:
        from amc_mobile.channels.plan import CHANNEL_CHOICES  # here, as in SearchConfig

        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise InvalidConfig(f"--ratios {self.ratios} are not all between 0 and 1", next_step="--ratios 0.25,0.5")
        check_ranges(self)
        check_choice("--channel-choice", self.channel_choice, CHANNEL_CHOICES)


def asked_devices(also: str) -> list[tuple[str, float]]:
    """`galaxy:35,pixel_4:60` -> (device, ms). Raises InvalidConfig."""
    found = []
    for item in filter(None, also.replace(" ", "").split(",")):
        device, _, text = item.rpartition(":")
        try:
            limit = float(text)
        except ValueError:
            limit = 0.0
        if not device or not 0 < limit < float("inf"):
            raise InvalidConfig(f"--also {item!r} is not DEVICE:MS", next_step="for example --also galaxy:35")
        found.append((device, limit))
    devices = [device for device, _ in found]
    if len(set(devices)) < len(devices):
        raise InvalidConfig(f"--also names a device twice: {', '.join(devices)}", next_step="name each one once")
    return found


def check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    """Raises InvalidConfig for a value that is not among the choices."""
    if value not in choices:
        raise InvalidConfig(f"{flag} {value!r} is unknown", next_step=f"use one of: {', '.join(choices)}")
