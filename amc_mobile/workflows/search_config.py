"""What a search, a comparison and a table of sensitivities are asked for: checked before anything heavy is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from amc_mobile.channels.plan import CHANNEL_CHOICES
from amc_mobile.errors import InvalidConfig
from amc_mobile.search.budget import Unit
from amc_mobile.search.policy import POLICIES
from amc_mobile.search.reward import GUARANTEED, REWARDS

# How many images the fidelity is taken on where the number is left to us. They rank plans of ResNet-20 and ResNet-56
# as 256 do but for 0.01 of Spearman's correlation, in half the time (scripts/benchmarks/episode_cost.py).
FIDELITY_IMAGES = 128
GRANULARITIES = ("channel", "weight")


@dataclass(frozen=True)
class Budget:
    """What a plan may cost at most; several at once must all be met, and a plan's cost is counted in the first one.

    `latency_ms`: p50, measured; the ratios are shares of the original's latency, MACs and parameters, in (0, 1].
    Raises InvalidConfig for none at all, for two of one latency, and for values that cannot be.

        amc.Budget(latency_ms=30), amc.Budget(latency_ratio=0.5, params_ratio=0.7)
    """

    latency_ms: float | None = None
    latency_ratio: float | None = None
    macs_ratio: float | None = None
    params_ratio: float | None = None

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

    policy: str = "critic"
    reward: str = "fidelity"
    episodes: int = 300
    channel_choice: str = "backward"
    measure_every: int = 50
    min_keep_ratio: float = 0.2
    multiple: int | None = None  # of kept channels; None: what the device was found to prefer
    calibration_images: int = 1500
    reward_images: int | None = None  # None: those that `train` leaves out
    max_loss: float | None = None  # of accuracy on the reward images; the cheapest plan that loses no more is wanted
    granularity: str = "channel"  # or "weight": single weights of a layer, the smallest first
    keep: str = ""  # groups that stay whole: patterns of names, or "residual", separated by commas
    also: str = ""  # budgets on further devices, DEVICE:MS separated by commas

    def __post_init__(self) -> None:
        name, _, file = self.policy.partition(":")
        check_choice("--policy", name, POLICIES)
        if (name == "from-file") != bool(file):
            raise InvalidConfig(f"--policy {self.policy!r} does not say which plan", next_step="from-file:PATH")
        check_choice("--reward", self.reward, REWARDS)
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
        counts = {
            "episodes": (self.episodes, 1), "multiple": (self.multiple, 1), "measure-every": (self.measure_every, 0),
            "calibration-images": (self.calibration_images, 1), "reward-images": (self.reward_images, 1),
        }  # fmt: skip
        for name, (count, lowest) in counts.items():
            if count is not None and count < lowest:
                raise InvalidConfig(f"--{name} {count} is too small", next_step=f"it is {lowest} or more")
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
    policies: tuple[str, ...] = ("uniform", "random", "ddpg", "evolution", "critic", "dp")
    seeds: tuple[int, ...] = (0,)
    budgets: tuple[float, ...] = ()
    finetune_epochs: int = 0
    finetune_learning_rate: float | None = None  # None: what `finetune` takes

    def __post_init__(self) -> None:
        if not self.policies or not self.seeds:
            raise InvalidConfig(
                "a comparison needs at least one policy and one seed", next_step="--policies uniform,critic --seeds 0"
            )
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

    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    multiple: int = 1
    channel_choice: str = "backward"
    calibration_images: int = 1500
    reward_images: int | None = None  # None: those that `train` leaves out

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise InvalidConfig(f"--ratios {self.ratios} are not all between 0 and 1", next_step="--ratios 0.25,0.5")
        if self.multiple < 1:
            raise InvalidConfig(f"--multiple is {self.multiple}; it must be at least 1", next_step="--multiple 8")
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
