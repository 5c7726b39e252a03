"""How other tools price a kernel that was not measured, each fitted to the same measured kernels as ours.

All give the sum over a network's kernels, (N, groups) -> ms (N,); what they make of it is calibrated as ours is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Rbf, RegularGridInterpolator
from sklearn.ensemble import RandomForestRegressor

from amc_mobile.kernels.kernel import Kernel
from amc_mobile.kernels.template import Template
from amc_mobile.latency.kernel_fit import SitePoints, axis_values
from amc_mobile.latency.predictor import LatencyPredictor

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
Sum = Callable[[Widths], Floats]
TREES = 240  # the smallest forest of nn-Meter's predictors


def of_points(template: Template, points: Sequence[SitePoints], price: Callable[[SitePoints], Sum]) -> Sum:
    """The sum of one pricing function per site, each a function of its axes' values."""
    priced = [(p, price(p)) for p in points]

    def total(widths: Widths) -> Floats:
        return np.sum([function(axis_values(p.site, widths)) for p, function in priced], axis=0)

    return total


def bilinear(points: SitePoints) -> Callable[[Floats], Floats]:
    """Between the measured points, linearly in every axis (TF-NAS)."""
    axes = [np.unique(points.values[:, axis]) for axis in range(points.values.shape[1])]
    used = [i for i, axis in enumerate(axes) if len(axis) > 1]
    if not used or np.prod([len(axes[i]) for i in used]) != len(points.measured_ms):
        return nearest(points)
    order = np.lexsort(points.values.T[::-1])
    table = points.measured_ms[order].reshape([len(axes[i]) for i in used])
    found = RegularGridInterpolator([axes[i] for i in used], table, bounds_error=False, fill_value=None)
    return lambda values: np.asarray(found(values[:, used]))


def cubic_rbf(points: SitePoints) -> Callable[[Floats], Floats]:
    """Radial basis functions over the widths (NetAdapt)."""
    used = [i for i in range(points.values.shape[1]) if np.ptp(points.values[:, i])]
    if not used:
        return nearest(points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ill-conditioned systems are part of the method
        found = Rbf(*points.values[:, used].T, points.measured_ms, function="cubic")
    return lambda values: np.asarray(found(*values[:, used].T))


def nearest(points: SitePoints) -> Callable[[Floats], Floats]:
    """The closest measured widths (PaddleSlim)."""
    if not points.values.shape[1]:
        return lambda values: np.full(len(values), points.measured_ms[0])

    def price(values: Floats) -> Floats:
        distances = ((values[:, None] - points.values[None]) ** 2).sum(-1)
        return points.measured_ms[distances.argmin(axis=1)]

    return price


def forest(template: Template, points: Sequence[SitePoints]) -> Sum:
    """A random forest per kind of kernel, over its shapes, MACs and bytes (nn-Meter)."""
    examples: dict[str, dict[str, tuple[Kernel, float]]] = {}
    for p in points:
        for kernel, ms in zip(p.kernels, p.measured_ms, strict=True):
            examples.setdefault(p.site.operator_type, {})[kernel.key] = (kernel, float(ms))
    forests = {}
    for kind, known in examples.items():
        x = np.array([_features(kernel) for kernel, _ in known.values()])
        y = np.array([ms for _, ms in known.values()])
        forests[kind] = RandomForestRegressor(TREES, random_state=0, n_jobs=1).fit(x, y)

    def total(widths: Widths) -> Floats:
        sums = np.zeros(len(widths))
        for site in template.sites:
            rows = [_features(template.kernel_at(site.index, plan)) for plan in widths]
            sums += forests[site.operator_type].predict(np.array(rows))
        return sums

    return total


def macs_only(template: Template) -> Sum:
    """Multiply-accumulates alone, in units of a thousand million."""
    return lambda widths: np.array([sum(k.macs for k in template.kernels(plan)) / 1e9 for plan in widths])


def all_methods(template: Template, predictor: LatencyPredictor) -> Mapping[str, Sum]:
    points = [model.points for model in predictor.sites.values()]
    return {
        "macs_only": macs_only(template),
        "bilinear": of_points(template, points, bilinear),
        "cubic_rbf": of_points(template, points, cubic_rbf),
        "nearest": of_points(template, points, nearest),
        "random_forest": forest(template, points),
    }


def _features(kernel: Kernel) -> list[float]:
    main = kernel.main
    size, window, strides = ((*shape, 1, 1) for shape in (main.out_map, main.window, main.strides))
    return [
        *size[:2], main.in_channels, main.out_channels, window[0], strides[0], kernel.macs, kernel.weight_bytes,
        kernel.activation_bytes,
    ]  # fmt: skip
