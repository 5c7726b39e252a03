"""The roofline of one kernel site: its measured points, and the terms of the fit at these and any other widths.

Vector units work on tiles of channels: a kernel costs what the next multiple of the tile costs, or widths that are no
multiple run slower code. On filled widths a + sum b_i x_i + sum c_ij x_i x_j holds launch cost, bytes and MACs, which
are linear and bilinear in the channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.kernel import Kernel
    from amc_mobile.kernels.onnx_layout import Border
    from amc_mobile.kernels.template import KernelSite

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
Role = Literal["in", "out", "other"]


@dataclass(frozen=True, order=True)
class Steps:
    """How the latency of an operator type climbs with its channels; 1 means no steps.

    `tile_in`, `tile_out`: channels are filled up to a multiple of these. `aligned`: channels that are no multiple of
    this run slower code. `split`: where the runtime runs other code for few channels, latency climbs otherwise there.
    """

    tile_in: int = 1
    tile_out: int = 1
    aligned: int = 1
    split: bool = False


NO_STEPS = Steps()


@dataclass(frozen=True)
class SitePoints:
    """The measured points of one site. `values`: (points, axes). `around_tiles`: points of a probe, axis values -> ms:
    they tell what widths cost that a profile never takes.
    """

    site: KernelSite
    values: Floats
    measured_ms: Floats
    kernels: tuple[Kernel, ...]
    channels_per_unit: tuple[float, ...]  # per axis: what one unit of it is worth in channels
    roles: tuple[Role, ...]
    around_tiles: Mapping[tuple[float, ...], float] = field(default_factory=dict)

    @property
    def all_values(self) -> Floats:
        """(all points, axes): the profile's, then the probe's."""
        return np.concatenate(
            [self.values, np.array(list(self.around_tiles)).reshape(len(self.around_tiles), self.values.shape[1])]
        )

    @property
    def all_ms(self) -> Floats:
        return np.concatenate([self.measured_ms, np.array(list(self.around_tiles.values()))])

    def with_probed(self, found: Mapping[tuple[float, ...], float]) -> SitePoints:
        """With those of a probe's points that are within the range of the profile: below it, other code may run."""
        low, high = self.values.min(axis=0), self.values.max(axis=0)
        inside = {key: ms for key, ms in found.items() if ((low <= key) & (key <= high)).all()}
        return replace(self, around_tiles=inside)

    @classmethod
    def collect(cls, site: KernelSite, widths: Widths, kernels: Sequence[Kernel], measured_ms: Floats) -> SitePoints:
        values = axis_values(site, widths)
        read = [_role(values[:, axis], kernels) for axis in range(values.shape[1])]
        scales, roles = tuple(scale for _, scale in read), tuple(role for role, _ in read)
        return cls(site, values, measured_ms, tuple(kernels), scales, roles)

    def filled(self, values: Floats, steps: Steps) -> Floats:
        """(N, axes): every axis raised to the next multiple of its role's tile; not where code for fewer runs."""
        filled = values.copy()
        for axis, (role, scale) in enumerate(zip(self.roles, self.channels_per_unit, strict=True)):
            step = {"in": steps.tile_in, "out": steps.tile_out, "other": 1}[role] / scale
            if step > 1 / scale:
                tiled = values[:, axis] >= (self.site.other_code_from.get(axis, 0) if steps.split else 0)
                filled[tiled, axis] = np.ceil(values[tiled, axis] / step - 1e-9) * step
        return filled

    def terms(self, values: Floats, scale: Floats, steps: Steps) -> Floats:
        """(N, axes) -> (N, terms): the basis of filled and scaled axes, and per axis the work on unaligned channels."""
        filled = self.filled(values, steps) / scale
        columns = [basis(filled)]
        for axis, start in self.site.other_code_from.items() if steps.split else ():  # other slopes below
            below = values[:, axis] < start
            others = np.delete(filled, axis, axis=1).prod(axis=1)
            columns += [(below * others)[:, None], (below * others * filled[:, axis])[:, None]]
        if steps.aligned > 1:
            work = filled.prod(axis=1)
            for axis, (role, per_unit) in enumerate(zip(self.roles, self.channels_per_unit, strict=True)):
                if role != "other":
                    off = np.abs(np.remainder(values[:, axis] * per_unit + 0.5, steps.aligned) - 0.5) > 1e-6
                    columns.append((work * off)[:, None])
        return np.concatenate(columns, axis=1)


def axis_values(site: KernelSite | Border, widths: Widths) -> Floats:
    """(N, axes): the value of each axis of a site at each plan."""
    columns = [axis.evaluate(widths).astype(float) for axis in site.axes]
    return np.stack(columns, axis=1) if columns else np.zeros((len(widths), 0))


def basis(x: Floats) -> Floats:
    """(N, axes) -> (N, terms): 1, every axis, every product of two."""
    pairs = [x[:, i] * x[:, j] for i, j in itertools.combinations(range(x.shape[1]), 2)]
    return np.stack([np.ones(len(x)), *x.T, *pairs], axis=1)


def bilinear(points: SitePoints, amounts: Floats) -> Floats:
    """Coefficients in `basis(values)` of an amount that is bilinear in the axes, as bytes are. `amounts`: (points,)."""
    return np.asarray(np.linalg.lstsq(basis(points.values), amounts, rcond=None)[0])


def have_own_groups(site: KernelSite) -> bool:
    """Whether a site has at most two axes and they can be moved apart, so that its points form a grid."""
    groups = [group for axis in site.axes for group, _ in axis.terms]
    return len(site.axes) <= 2 and len(groups) == len(set(groups))


def _role(values: Floats, kernels: Sequence[Kernel]) -> tuple[Role, float]:
    """What an axis stands for, and how many channels one unit of it is."""
    roles: tuple[Role, Role] = ("out", "in")
    for role in roles:
        channels = np.array([getattr(kernel.main, f"{role}_channels") for kernel in kernels], dtype=np.float64)
        if len(values) > 1 and np.ptp(values) and np.allclose(channels * values[0], values * channels[0]):
            return role, float(channels[0] / values[0])
    return "other", 1.0
