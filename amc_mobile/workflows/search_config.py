"""What a search is asked for: its budgets, and how to search within them."""

from __future__ import annotations

from dataclasses import dataclass

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.budget import Unit
from amc_mobile.search.reward import GUARANTEED
from amc_mobile.workflows.budgets import asked_devices

GRANULARITIES = ("channel", "weight")


@dataclass(frozen=True)
class SearchConfig:
    """Budgets and how to search within them; `amc-mobile search --help` explains the fields."""

    latency_ms: float | None = None
    latency_ratio: float | None = None
    macs_ratio: float | None = None
    params_ratio: float | None = None
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
        if self.reward in GUARANTEED and not any(v is not None for v in self._budgets().values()):
            # These rewards need no budget: all of the original's cost is allowed, in the reward's unit.
            flag = {"macs": "macs_ratio", "parameters": "params_ratio", "ms": "latency_ratio"}[GUARANTEED[self.reward]]
            object.__setattr__(self, flag, 1.0)
        given = {k: v for k, v in self._budgets().items() if v is not None}
        if not given:
            flags = ", ".join(f"--{name}" for name in self._budgets())
            raise InvalidConfig("no budget was given", next_step=f"pass one or more of {flags}")
        if "latency-ms" in given and "latency-ratio" in given:
            raise InvalidConfig("--latency-ms and --latency-ratio both limit one latency", next_step="pass one of them")
        for name, value in given.items():
            if not value > 0 or (name != "latency-ms" and value > 1):
                raise InvalidConfig(f"--{name} {value} is not allowed", next_step="ratios are above 0 and at most 1")
        if asked_devices(self.also) and self.unit != "ms":
            raise InvalidConfig(
                "--also is a further latency budget, and there is none for --device",
                next_step="pass --latency-ms or --latency-ratio too, or name that device with --device",
            )
        if self.episodes < 1 or (self.multiple is not None and self.multiple < 1) or not 0 < self.min_keep_ratio <= 1:
            raise InvalidConfig("episodes and multiple must be at least 1, min_keep_ratio in (0, 1]")
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise InvalidConfig(f"--max-loss {self.max_loss} is not a share of the images", next_step="try 0.01")
        if self.max_loss is not None and self.reward == "macs":
            raise InvalidConfig("the reward macs looks at no image", next_step="leave --max-loss out, or --reward top1")
        if self.granularity not in GRANULARITIES:
            raise InvalidConfig(
                f"no granularity {self.granularity!r}", next_step=f"use one of: {', '.join(GRANULARITIES)}"
            )
        if self.granularity == "weight" and self.unit != "parameters":
            raise InvalidConfig(
                "pruning single weights saves parameters; MACs and latency of the network's file stay what they are",
                next_step="pass --params-ratio",
            )
        if GUARANTEED.get(self.reward) == "ms" and self.unit != "ms":
            raise InvalidConfig(f"the reward {self.reward} needs a latency budget", next_step="pass --latency-ratio 1")

    def _budgets(self) -> dict[str, float | None]:
        return {
            "latency-ms": self.latency_ms, "latency-ratio": self.latency_ratio, "macs-ratio": self.macs_ratio,
            "params-ratio": self.params_ratio,
        }  # fmt: skip

    @property
    def asked(self) -> str:
        """The budgets as the user put them, e.g. `latency-ratio 0.5`, `latency-ms 30 macs-ratio 0.6 also galaxy:35`."""
        return " ".join([*self.asked_of_model, *(f"also {device}:{ms:g}" for device, ms in asked_devices(self.also))])

    @property
    def asked_of_model(self) -> list[str]:
        """Those of the device and of the network alone; the first is the one that costs are counted in."""
        return [f"{name} {value:g}" for name, value in self._budgets().items() if value is not None]

    @property
    def unit(self) -> Unit:
        if self.latency_ms is not None or self.latency_ratio is not None:
            return "ms"
        return "macs" if self.macs_ratio is not None else "parameters"
