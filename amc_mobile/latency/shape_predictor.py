"""Predictions of a network's plans from another tool's table, whose kernels are matched by operator and shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import InvalidInput, MissingLatency
from amc_mobile.latency.calibration import Calibration
from amc_mobile.latency.measurement import KernelMeasurement
from amc_mobile.latency.plan_sums import Grid, PlanSums
from amc_mobile.latency.predictor import EXACT_SIGMA, EXTRAPOLATION, LatencyPredictor, Prediction, Source
from amc_mobile.latency.roofline import axis_values
from amc_mobile.latency.shape_fit import Channels, ShapeFit, TimedShape
from amc_mobile.latency.shapes import KernelShape

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.template import KernelSite, Template

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]


def timed_shapes(
    measured: Mapping[str, KernelMeasurement], documents: Mapping[str, Mapping[str, Any]]
) -> list[TimedShape]:
    """The kernels whose shapes an imported table told; the median over their passes. `documents`: of the table."""
    found = []
    for key, kernel in measured.items():
        document = documents[key]
        if document.get("shape"):
            ms = float(np.median([np.mean(samples) for samples in kernel.samples_ms]))
            shape = KernelShape.from_document(document["shape"])
            found.append(TimedShape(shape, ms, str(document.get("network", ""))))
    if not found:
        raise InvalidInput(
            "the imported table does not tell the shapes of its kernels",
            next_step="import it again with `amc-mobile table import --csv --shape ...`; see its --help",
        )
    return found


class ShapePredictor(LatencyPredictor):
    """Sums like those of a profiled table, from a few shapes of each kind.

    Raises MissingLatency naming the kernels whose operator the table has nowhere. One whose operator is known but not
    at that map and stride is estimated by the operator's roofline and counts as extrapolated.
    """

    def __init__(self, template: Template, grids: Sequence[Widths], rows: Sequence[TimedShape]) -> None:
        self._template, self._grid, self.fit = template, Grid(grids), ShapeFit(rows)
        self.sites, self.steps = {}, {}
        self._sigmas = self.fit.sigmas()
        self._places: dict[int, KernelShape] = {}
        unknown = []
        for site in template.sites:
            kernel = template.kernel_at(site.index, template.sizes)
            place = self.fit.place_of(KernelShape.of(kernel))
            if place is None:
                unknown.append(f"{site.name}: {kernel.label}")
            else:
                self._places[site.index] = place
        if unknown:
            raise MissingLatency(unknown)
        self._channels = {site.index: _channels_of(site, template, grids) for site in template.sites}
        self._sums, self._risks = self._summed(self._site_ms), self._summed(self._site_risk_ms)

    @cached_property
    def calibration(self) -> Calibration:
        return self.fit.calibration()

    def risk_ms(self, widths: Widths) -> Floats:
        """(N, groups) -> (N,): what kernels far from everything timed may cost beyond `sum_ms`."""
        return self._risks.sums(widths)

    def explain(self, widths: Widths) -> dict[int, Prediction]:
        """Site index -> prediction at one plan, shape (groups,)."""
        asked = np.asarray(widths, dtype=np.int64)[None]
        found = {}
        for site in self._template.sites:
            place, channels = self._places[site.index], self._channels[site.index](axis_values(site, asked))
            ms, sigma = float(self.fit.predict(place, channels)[0]), self._sigmas[place.operator]
            source: Source = "aligned"
            if self.fit.is_exact(place, channels)[0]:
                source, sigma = "exact", EXACT_SIGMA
            elif not self.fit.is_nearby(place, channels)[0]:
                source, sigma = "extrapolated", sigma * EXTRAPOLATION
            found[site.index] = Prediction(ms, source, sigma)
        return found

    def _summed(self, amount: Callable[[KernelSite, Floats], Floats]) -> PlanSums:
        sites = self._template.sites
        return PlanSums(self._grid, sites, [partial(amount, site) for site in sites])

    def _site_ms(self, site: KernelSite, values: Floats) -> Floats:
        return self.fit.predict(self._places[site.index], self._channels[site.index](values))

    def _site_risk_ms(self, site: KernelSite, values: Floats) -> Floats:
        place, channels = self._places[site.index], self._channels[site.index](values)
        far = ~self.fit.is_nearby(place, channels)
        return np.asarray(self.fit.predict(place, channels) * far * EXTRAPOLATION * self._sigmas[place.operator])


def _channels_of(site: KernelSite, template: Template, grids: Sequence[Widths]) -> Callable[[Floats], Channels]:
    """The channels of a site's kernel as a function of its axes, (N, axes) -> (N, 2); both grow linearly."""
    plans = [template.sizes.copy()]
    for group in site.group_indices:
        plan = template.sizes.copy()
        plan[group] = grids[group][0] if grids[group][0] != plan[group] else max(plan[group] - 1, 1)
        plans.append(plan)
    kernels = [template.kernel_at(site.index, plan) for plan in plans]
    values = axis_values(site, np.array(plans, dtype=np.int64))
    design = np.concatenate([np.ones((len(plans), 1)), values], axis=1)
    channels = np.array([KernelShape.of(kernel).channels for kernel in kernels], dtype=np.float64)
    factors = np.linalg.lstsq(design, channels, rcond=None)[0]

    def at(asked: Floats) -> Channels:
        found = np.concatenate([np.ones((len(asked), 1)), asked], axis=1) @ factors
        return np.asarray(np.rint(found), dtype=np.int64)

    return at
