"""The latency of any plan as a sum of kernels, by table look-ups on the aligned grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import MissingLatency
from amc_mobile.latency.plan_sums import Grid, PlanSums
from amc_mobile.latency.probe import widths_around_tiles
from amc_mobile.latency.roofline import NO_STEPS, SitePoints, Steps, axis_values, basis, bilinear, have_own_groups
from amc_mobile.latency.sampling import points_per_axis, site_points
from amc_mobile.latency.site_fit import SiteModel, choose_steps, fit_site

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.template import KernelSite, Template

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
Source = Literal["exact", "aligned", "ceil", "extrapolated"]

EXACT_SIGMA = 0.01  # two passes of a measured kernel agree this well
EXTRAPOLATION = 3.0  # times the sigma between points
MEGABYTE = 1e6


@dataclass(frozen=True)
class Prediction:
    """Of one kernel site at one plan. `sigma`: relative.

    `source`: "exact": this kernel was measured; "aligned": on the grid, between measured points; "ceil": off the grid,
    priced as the next widths above; "extrapolated": beyond the measured widths.
    """

    ms: float
    source: Source
    sigma: float


class LatencyPredictor:
    """Sums of kernel latencies for plans on the grid. Widths between grid points count as the next one above.

    `lows_ms`: kernel key -> ms. `sampled`: the grids whose points were measured, where plans may take other widths than
    those. `measured_plans`: plans, each (groups,), whose very kernels are taken from `exact_ms` (default: `lows_ms`)
    where it has them. `plain`: measured points are interpolated, without rooflines and steps. `quick`: the sampled
    points are those of a quick profile. Raises MissingLatency naming every kernel of the sampled points that has not
    been measured.
    """

    def __init__(
        self,
        template: Template,
        grids: Sequence[Widths],
        lows_ms: Mapping[str, float],
        *,
        sampled: Sequence[Widths] | None = None,
        measured_plans: Sequence[Widths] = (),
        exact_ms: Mapping[str, float] | None = None,
        plain: bool = False,
        quick: bool = False,
    ) -> None:
        self._grid = Grid(grids)
        self._borders = template.borders
        measured = lows_ms if exact_ms is None else exact_ms
        points = _collect(template, sampled or grids, lows_ms, quick)
        probed = {p.site.index: _around_tiles(p, template, measured) for p in points}
        points = [p.with_probed(probed[p.site.index]) for p in points]
        self.plain = plain
        self.steps: dict[str, Steps] = choose_steps([] if plain else points)
        known = _also_measured(template, measured_plans, measured)
        self.sites: dict[int, SiteModel] = {
            p.site.index: fit_site(
                p,
                self.steps.get(p.site.operator_type, NO_STEPS),
                {**known[p.site.index], **probed[p.site.index]},
                plain=plain,
            )
            for p in points
        }
        self._sums = PlanSums(self._grid, template.sites, [self.sites[s.index].predict_at for s in template.sites])

    def sum_ms(self, widths: Widths) -> Floats:
        """(N, groups) -> ms (N,): the sum over kernels of their lowest p20, before calibration."""
        return self._sums.sums(widths)

    def site_ms(self, widths: Widths) -> dict[int, float]:
        """Site index -> ms at one plan, shape (groups,)."""
        return {index: found.ms for index, found in self.explain(widths).items()}

    def explain(self, widths: Widths) -> dict[int, Prediction]:
        """Site index -> prediction at one plan, shape (groups,)."""
        asked = np.asarray(widths, dtype=np.int64)[None]
        snapped = self._grid.snapped(asked)
        raised = (snapped != asked)[0]
        found = {}
        for index, model in self.sites.items():
            ms = float(model.predict(snapped)[0])
            values = axis_values(model.site, snapped)
            if not model.is_inside(axis_values(model.site, asked))[0]:
                found[index] = Prediction(ms, "extrapolated", model.sigma * EXTRAPOLATION)
            elif raised[list(model.site.group_indices)].any():
                # The truth lies between this and what the widths asked for would cost without steps.
                off = abs(1 - float(model.predict(asked)[0]) / ms)
                found[index] = Prediction(ms, "ceil", float(np.hypot(model.sigma, off)))
            elif tuple(values[0].tolist()) in model.exact:
                found[index] = Prediction(ms, "exact", EXACT_SIGMA)
            else:
                found[index] = Prediction(ms, "aligned", model.sigma)
        return found

    def weight_mb(self, widths: Widths) -> Floats:
        """(N, groups) -> (N,): the weights of the whole model."""
        return self._weights.sums(widths)

    def boundary_mb(self, widths: Widths) -> Floats:
        """(N, groups) -> (N,): what kernels cut out convert between layouts and the whole model does not. Where the
        template does not know: what crosses the borders of kernels that multiply."""
        return self._boundaries.sums(widths)

    @property
    def held_bytes(self) -> int:
        """Of the tables that sums are looked up in."""
        return self._sums.held_bytes

    @cached_property
    def _weights(self) -> PlanSums:
        return self._bytes([[k.weight_bytes for k in m.points.kernels] for m in self.sites.values()])

    @cached_property
    def _boundaries(self) -> PlanSums:
        if self._borders:
            return PlanSums(self._grid, self._borders, [border.spared_mb for border in self._borders])
        sites = self.sites.values()
        return self._bytes([[k.activation_bytes if k.macs else 0 for k in m.points.kernels] for m in sites])

    def _bytes(self, amounts: Sequence[Sequence[int]]) -> PlanSums:
        sites, models = [m.site for m in self.sites.values()], self.sites.values()
        found = [bilinear(m.points, np.array(a, np.float64) / MEGABYTE) for m, a in zip(models, amounts, strict=True)]
        return PlanSums(self._grid, sites, [_Bilinear(coefficients) for coefficients in found])


@dataclass(frozen=True)
class _Bilinear:
    coefficients: Floats

    def __call__(self, values: Floats) -> Floats:
        return np.asarray(basis(values) @ self.coefficients)


def _collect(
    template: Template, grids: Sequence[Widths], lows_ms: Mapping[str, float], quick: bool
) -> list[SitePoints]:
    count = points_per_axis(template, grids)
    missing: dict[str, str] = {}
    found = []
    for site in template.sites:
        widths = site_points(site, template.sizes, grids, count, quick=quick)
        kernels = [template.kernel_at(site.index, row) for row in widths]
        lacking = {k.key: f"{site.name}: {k.label}" for k in kernels if k.key not in lows_ms}
        missing |= lacking
        if not lacking:
            measured = np.array([lows_ms[kernel.key] for kernel in kernels])
            found.append(SitePoints.collect(site, np.array(widths), kernels, measured))
    if missing:
        raise MissingLatency(sorted(missing.values()))
    return found


def _around_tiles(
    points: SitePoints, template: Template, exact_ms: Mapping[str, float]
) -> dict[tuple[float, ...], float]:
    """Axis values -> ms, of what the table has of a site around tiles, where the profile has nothing."""
    site, known = points.site, {tuple(values) for values in points.values.tolist()}
    found = {}
    for widths in widths_around_tiles(site, template.sizes) if have_own_groups(site) else ():
        values = _values_of(site, widths)
        if values not in known and (ms := exact_ms.get(template.kernel_at(site.index, widths).key)) is not None:
            found[values] = ms
    return found


def _also_measured(
    template: Template, plans: Sequence[Widths], exact_ms: Mapping[str, float]
) -> dict[int, dict[tuple[float, ...], float]]:
    """Site index -> axis values -> ms, of the kernels of whole plans."""
    found: dict[int, dict[tuple[float, ...], float]] = {site.index: {} for site in template.sites}
    for plan in plans:
        for site in template.sites:
            low = exact_ms.get(template.kernel_at(site.index, plan).key)
            if low is not None:
                found[site.index][_values_of(site, plan)] = low
    return found


def _values_of(site: KernelSite, widths: Widths) -> tuple[float, ...]:
    return tuple(axis_values(site, np.asarray(widths)[None])[0].tolist())
