"""The latency of any plan as a sum of kernels, by table look-ups on the aligned grid."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import nnls

from amc_mobile.errors import MissingLatency
from amc_mobile.latency.sampling import axis_points, site_points

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.template import KernelSite, Template

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SiteModel:
    """The latency of one site: a non-negative roofline in its axes times an interpolated correction.

    The roofline a + sum b_i x_i + sum c_ij x_i x_j holds launch cost, bytes and MACs of a convolution, which are
    linear and bilinear in its channels. The correction is exact at every measured point.
    """

    site: KernelSite
    coefficients: Floats
    points: Floats  # (measured points, axes), scaled to at most 1
    log_residuals: Floats  # (measured points,)
    scale: Floats  # (axes,)

    def predict(self, widths: Widths, correction: Floats | None = None) -> Floats:
        """(N, groups) -> ms (N,). `correction`: log residuals found elsewhere, else by inverse distance."""
        x = axis_values(self.site, widths) / self.scale
        base = basis(x) @ self.coefficients
        if correction is None:
            distances = ((x[:, None, :] - self.points[None]) ** 2).sum(-1) if x.shape[1] else np.zeros((len(x), 1))
            weights = 1.0 / (distances + 1e-9) ** 2
            correction = (weights * self.log_residuals).sum(1) / weights.sum(1)
        return np.asarray(base * np.exp(correction))


def axis_values(site: KernelSite, widths: Widths) -> Floats:
    """(N, axes): the value of each axis of a site at each plan."""
    columns = [axis.evaluate(widths).astype(float) for axis in site.axes]
    return np.stack(columns, axis=1) if columns else np.zeros((len(widths), 0))


def basis(x: Floats) -> Floats:
    """(N, axes) -> (N, terms): 1, every axis, every product of two."""
    pairs = [x[:, i] * x[:, j] for i, j in itertools.combinations(range(x.shape[1]), 2)]
    return np.stack([np.ones(len(x)), *x.T, *pairs], axis=1)


def fit_site(site: KernelSite, widths: Widths, measured_ms: Floats) -> SiteModel:
    """Fits one site to its measured points, each counting by its relative error."""
    values = axis_values(site, widths)
    scale = values.max(axis=0) if values.shape[1] else np.zeros(0)
    x = values / scale
    design = basis(x)
    coefficients, _ = nnls(design / measured_ms[:, None], np.ones(len(x)))
    fitted = design @ coefficients
    return SiteModel(site, coefficients, x, np.log(measured_ms / fitted), scale)


class LatencyPredictor:
    """Sums of kernel latencies for plans on the grid. Widths between grid points count as the next one above.

    `lows_ms`: kernel key -> ms. Raises MissingLatency naming every kernel that has not been measured.
    """

    def __init__(self, template: Template, grids: Sequence[Widths], lows_ms: Mapping[str, float]) -> None:
        self._grids = [np.asarray(grid) for grid in grids]
        self._sparse: list[SiteModel] = []
        self._missing: dict[str, str] = {}
        tables: list[Floats] = []
        strides = np.zeros((len(grids), 0))
        offsets: list[int] = []
        used = 0
        self.sites: dict[int, SiteModel] = {}
        for site in template.sites:
            fitted = self._fit(template, site, lows_ms)
            if fitted is None:
                continue
            self.sites[site.index] = fitted
            if len(site.group_indices) > 2:
                self._sparse.append(fitted)
                continue
            table = self._dense(template, fitted)
            column = np.zeros((len(grids), 1))
            for position, group in enumerate(site.group_indices):
                column[group] = np.prod(table.shape[position + 1 :])
            strides = np.concatenate([strides, column], axis=1)
            offsets.append(used)
            used += table.size
            tables.append(table.ravel())
        if self._missing:
            raise MissingLatency(sorted(self._missing.values()))
        self._strides = strides
        self._offsets = np.array(offsets, dtype=np.int64)
        self._flat = np.concatenate(tables) if tables else np.zeros(0)

    def sum_ms(self, widths: Widths) -> Floats:
        """(N, groups) -> ms (N,): the sum over kernels of their lowest p20, before calibration."""
        positions = self._positions(widths)
        cells = (positions @ self._strides).astype(np.int64) + self._offsets
        total: Floats = self._flat[cells].sum(axis=1)
        for model in self._sparse:
            total = total + model.predict(self._snapped(positions))
        return total

    def site_ms(self, widths: Widths) -> dict[int, float]:
        """Site index -> ms at one plan, shape (groups,)."""
        snapped = self._snapped(self._positions(widths[None]))
        return {index: float(model.predict(snapped)[0]) for index, model in self.sites.items()}

    def _positions(self, widths: Widths) -> Floats:
        columns = [np.searchsorted(grid, widths[:, g]).clip(0, len(grid) - 1) for g, grid in enumerate(self._grids)]
        return np.stack(columns, axis=1).astype(float)

    def _snapped(self, positions: Floats) -> Widths:
        return np.stack([grid[positions[:, g].astype(int)] for g, grid in enumerate(self._grids)], axis=1)

    def _fit(self, template: Template, site: KernelSite, lows_ms: Mapping[str, float]) -> SiteModel | None:
        points = site_points(site, template.sizes, self._grids)
        kernels = [template.kernel_at(site.index, widths) for widths in points]
        missing = {k.key: f"{site.name}: {k.label}" for k in kernels if k.key not in lows_ms}
        self._missing.update(missing)
        if missing:
            return None
        return fit_site(site, np.array(points), np.array([lows_ms[kernel.key] for kernel in kernels]))

    def _dense(self, template: Template, model: SiteModel) -> Floats:
        """The latency at every grid point of the (at most two) groups of a site."""
        groups = model.site.group_indices
        axes = [self._grids[g] for g in groups]
        widths = np.tile(template.sizes, (int(np.prod([len(axis) for axis in axes])), 1))
        if groups:
            mesh = np.meshgrid(*axes, indexing="ij")
            widths[:, list(groups)] = np.stack([m.ravel() for m in mesh], axis=1)
        correction = np.full(len(widths), model.log_residuals.mean())
        if groups:
            corners = [axis_points(axis).astype(float) for axis in axes]
            residuals = model.log_residuals.reshape([len(corner) for corner in corners])
            used = [i for i, corner in enumerate(corners) if len(corner) > 1]
            if used:
                interpolate = RegularGridInterpolator([corners[i] for i in used], residuals.squeeze())
                correction = interpolate(widths[:, [groups[i] for i in used]].astype(float))
        return model.predict(widths, correction).reshape([len(axis) for axis in axes])
