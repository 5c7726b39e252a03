"""The error tree. Only the command line turns these into text and an exit code.

AmcMobileError                exit 1
  InvalidConfig               exit 2: a file or flag: key, value, what is allowed
  InvalidInput                a model, checkpoint, data set or file that cannot be used as given
    NotFinite                 a layer whose values are NaN or infinite
  CorruptFile                 a saved file that cannot be read back
  SystemRefused               a file that the system cannot write or open: full disk, permissions
  UnsupportedLayer            module path and operator that cannot be traced or cut
  MissingDependency           the extra to install
  MissingLatency              kernels without an entry in the latency table
  UnreachableBudget           no plan meets the budget; carries the fastest reachable cost
  BudgetNotMet                exit 3: the measured result is over the budget
  AccuracyNotKept             exit 3: the network loses more accuracy than was allowed
  BudgetNotVerified           exit 4: the result was not measured on the device
  DeviceError                 the device cannot be used or failed while measuring
    DeviceUnavailable         no such phone, phone offline, no adb; carries nothing worth a retry
      DeviceUnauthorized      the phone waits for its USB debugging dialog
      AmbiguousDevice         several phones fit
    DeviceDisconnected        the link to the phone broke; worth a retry
    DeadlineExceeded          our own total time limit passed
    PhoneRebooted             the phone started anew while it worked for us
    PhoneDiskFull             no space on the phone
    PhoneCommandFailed        a command on the phone ended with an error: exit code, stderr
    PhoneOutputInvalid        the phone's answer cannot be read
    PhoneUnfit                preflight: the named problems, each of which can be waived
    PhoneBusy                 another process of this computer measures on the phone
    RunnerFailed              the benchmark program on the phone ended without finishing
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
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

    exit_code = 2


class InvalidInput(AmcMobileError):
    """A model, checkpoint, data set or file cannot be used as given."""


class NotFinite(InvalidInput):
    """A layer reads or holds values that are NaN or infinite. `layer`: its module path, empty where it is not known."""

    def __init__(self, layer: str = "") -> None:
        super().__init__(
            f"{layer or 'a layer'}: not all of its inputs on the calibration images and its weights are finite numbers",
            next_step="look for NaN in the checkpoint's weights and batch-norm statistics, and in the images",
        )
        self.layer = layer


class CorruptFile(AmcMobileError):
    """A file this program wrote, or one in a format it reads, cannot be read back."""

    def __init__(self, path: Path, why: str, *, next_step: str = "") -> None:
        super().__init__(f"{path}: {why}", next_step=next_step or "check that it is the right file, or make it again")
        self.path = path


class SystemRefused(AmcMobileError):
    """The system cannot write or open a file: the disk is full, or its permissions forbid it."""

    FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
    FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST})

    def __init__(self, error: OSError) -> None:
        is_full = error.errno in self.FULL
        what = "free some space there" if is_full else "check its permissions"
        super().__init__(
            f"{error.filename or 'a file of this step'}: {error.strerror}",
            next_step=f"{what}, or pass another --workspace; then run the same command again",
        )

    @classmethod
    def explains(cls, error: OSError) -> bool:
        return error.errno in cls.FULL | cls.FORBIDDEN


class UnsupportedLayer(AmcMobileError):
    """A part of the network that cannot be traced, cut or exported."""

    def __init__(self, module: str, why: str, *, next_step: str = "") -> None:
        super().__init__(
            f"{module or 'the network'}: {why}",
            next_step=next_step or "write that part of the network with other layers",
        )
        self.module = module


class MissingDependency(AmcMobileError):
    """An optional package is needed; names what to install: all packages of the extra, which is in no index itself."""

    def __init__(self, package: str, extra: str, *, next_step: str = "") -> None:
        listed = " ".join(f"'{requirement}'" for requirement in _of_extra(extra)) or package
        super().__init__(
            f"this needs the package {package!r}, which is not installed",
            next_step=next_step or f"pip install {listed}",
        )


def _of_extra(extra: str) -> list[str]:
    """The requirements of an extra of the installed amc-mobile; empty for "" and where it runs without installation."""
    from importlib.metadata import PackageNotFoundError, requires  # here: it takes a tenth of the start-up

    try:
        every = requires("amc-mobile") or []
    except PackageNotFoundError:
        return []
    found = [requirement.partition(";") for requirement in every]
    return [name.strip() for name, _, marker in found if re.search(rf"extra == ['\"]{extra}['\"]", marker)]


def first_line(error: BaseException) -> str:
    """What an error of another library says, in its first line that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


class MissingLatency(AmcMobileError):
    """The latency table has no entry for some kernels; lists them all at once. `because`: the cause, where known."""

    def __init__(self, kernels: Sequence[str], *, because: str = "") -> None:
        shown = ", ".join(kernels[:5]) + (f" and {len(kernels) - 5} more" if len(kernels) > 5 else "")
        count = f"{len(kernels)} kernel{'s' if len(kernels) > 1 else ''}"
        super().__init__(
            f"no latency for {count}: {shown}" + (f" ({because})" if because else ""),
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


class AccuracyNotKept(AmcMobileError):
    """The network loses more accuracy than was allowed."""

    exit_code = 3


class ToleranceExceeded(AmcMobileError):
    """A run is worse than the one that it was compared with, by more than was allowed."""

    exit_code = 3


class BudgetNotVerified(AmcMobileError):
    """Whether the result meets the budget was not measured."""

    exit_code = 4


class DeviceError(AmcMobileError):
    """The device cannot be used, or failed while measuring."""


class DeviceUnavailable(DeviceError):
    """There is no phone to talk to; a retry without a person's help is pointless."""


class DeviceUnauthorized(DeviceUnavailable):
    """The phone is attached and waits for somebody to allow USB debugging."""

    def __init__(self, serial: str) -> None:
        super().__init__(
            f"the phone {serial} does not allow USB debugging from this computer yet (adb says unauthorized)",
            next_step="unlock the phone and accept the dialog 'Allow USB debugging?'; if none appears, unplug the "
            "cable and plug it in again",
        )
        self.serial = serial


class AmbiguousDevice(DeviceUnavailable):
    """Several phones fit what was asked for."""


class DeviceDisconnected(DeviceError):
    """The link to the phone broke. Worth a retry: cables and wireless links come back."""


def readable_s(seconds: float) -> str:
    """Seconds as people read them: 0.25, 1.5, 19."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


class DeadlineExceeded(DeviceError):
    """A step took longer than its total time limit."""

    def __init__(self, what: str, limit_s: float, *, why: str = "", next_step: str = "") -> None:
        super().__init__(
            f"{what}: not done within {readable_s(limit_s)} s" + (f": {why}" if why else ""),
            next_step=next_step or "check the cable and that the phone is awake, then run the same command again",
        )
        self.limit_s = limit_s


class PhoneRebooted(DeviceError):
    """The phone started anew while it worked for us."""


class PhoneDiskFull(DeviceError):
    """The phone has no space for what must be written. `what`: what does not fit, or how much is needed."""

    def __init__(self, free_bytes: int, what: str) -> None:
        super().__init__(
            f"the phone has {free_bytes >> 20} MiB free: {what}",
            next_step="free some space on the phone, then run the same command again",
        )
        self.free_bytes = free_bytes


class PhoneCommandFailed(DeviceError):
    """A command ran on the phone and ended with an error."""

    def __init__(self, command: str, exit_code: int, stderr: str, *, next_step: str = "") -> None:
        said = " ".join(stderr.split())[:300]
        super().__init__(
            f"on the phone, `{command[:120]}` ended with exit code {exit_code}" + (f": {said}" if said else ""),
            next_step=next_step or "run `amc-mobile doctor`",
        )
        self.command = command
        self.exit_code = exit_code
        self.stderr = stderr


class PhoneOutputInvalid(DeviceError):
    """The phone's answer to a question is not in the form it should have."""

    def __init__(self, source: str, why: str, *, next_step: str = "") -> None:
        super().__init__(f"cannot read the phone's {source}: {why}", next_step=next_step or "run `amc-mobile doctor`")
        self.source = source


class PhoneUnfit(DeviceError):
    """The phone is in no state to measure on. `problems`: names that can be waived, each with what is wrong."""

    def __init__(self, problems: Mapping[str, str], *, next_step: str) -> None:
        listed = "; ".join(f"{text} [{name}]" for name, text in problems.items())
        super().__init__(f"the phone is not fit to measure: {listed}", next_step=next_step)
        self.problems = dict(problems)


class PhoneBusy(DeviceError):
    """Another process of this computer uses the phone."""


class RunnerFailed(DeviceError):
    """The benchmark program on the phone ended without finishing its work."""
