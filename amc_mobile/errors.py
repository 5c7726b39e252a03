"""The error tree. Only the command line turns these into text and an exit code.

AmcMobileError                exit 1
  InvalidConfig               a file or flag: key, value, what is allowed
  InvalidInput                a model, checkpoint, data set or file that cannot be used as given
  CorruptFile                 a saved file that cannot be read back
  UnsupportedLayer            module path and operator that cannot be traced or cut
  MissingDependency           the extra to install
  MissingLatency              kernels without an entry in the latency table
  UnreachableBudget           no plan meets the budget; carries the fastest reachable cost
  BudgetNotMet                exit 3: the measured result is over the budget
  DeviceError                 the device cannot be used or failed while measuring
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class AmcMobileError(Exception):
    """An error the user can act on: `message` says what failed, `next_step` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class InvalidConfig(AmcMobileError):
    """A flag or a configuration file holds a value that is not allowed."""


class InvalidInput(AmcMobileError):
    """A model, checkpoint, data set or file cannot be used as given."""


class CorruptFile(AmcMobileError):
    """A file this program wrote, or one in a format it reads, cannot be read back."""

    def __init__(self, path: Path, why: str, *, next_step: str = "") -> None:
        super().__init__(f"{path}: {why}", next_step=next_step)
        self.path = path


class UnsupportedLayer(AmcMobileError):
    """A part of the network that cannot be traced, cut or exported."""

    def __init__(self, module: str, why: str, *, next_step: str = "") -> None:
        super().__init__(f"{module or 'the network'}: {why}", next_step=next_step)
        self.module = module


class MissingDependency(AmcMobileError):
    """An optional package is needed; names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed",
            next_step=f"pip install 'amc-mobile[{extra}]'" if extra else f"pip install {package}",
        )


class MissingLatency(AmcMobileError):
    """The latency table has no entry for some kernels; lists them all at once."""

    def __init__(self, kernels: Sequence[str]) -> None:
        shown = ", ".join(kernels[:5]) + (f" and {len(kernels) - 5} more" if len(kernels) > 5 else "")
        super().__init__(
            f"no latency for {len(kernels)} kernels: {shown}",
            next_step="run `amc-mobile profile` for this model and device",
        )
        self.kernels = tuple(kernels)


class UnreachableBudget(AmcMobileError):
    """No plan on the grid meets the budget."""

    def __init__(self, wanted: str, smallest: str) -> None:
        super().__init__(
            f"the budget of {wanted} cannot be reached; the smallest plan allowed costs {smallest}",
            next_step="raise the budget, or lower --min-keep-ratio",
        )


class BudgetNotMet(AmcMobileError):
    """The measured result is over the budget."""

    exit_code = 3


class DeviceError(AmcMobileError):
    """The device cannot be used, or failed while measuring."""
