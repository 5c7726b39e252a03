"""From a few timed kernels of another tool to any channels: rooflines per operator, residuals per place.

Such a table has a handful of widths where a profile has a grid. Kernels of one operator share a roofline: launch,
MACs, bytes, and work on channels that are no multiple of a tile, which is found by leaving points out. What a place
(operator, map, stride) does differently is interpolated between the channels measured there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from amc_mobile.latency.calibration import (
    BAND_FLOOR,
    UNKNOWN_ERROR,
    Calibration,
    error_band,
)
from amc_mobile.latency.shapes import CONVOLUTIONS, KernelShape

Floats = NDArray[np.float64]
Channels = NDArray[np.int64]  # (N, 2): in and out
ALIGNED = (1, 16, 32)  # channels that are no multiple of one of these may run slower code
SMOOTHING = 0.05  # of the distance between logarithms of channels, in the weights of a place's residuals
NEARBY = 1.25  # a width counts as measured when the nearest end of the measured range is within this factor


@dataclass(frozen=True)
class TimedShape:
    """One kernel of a table. `network`: of which model it was timed as a part; empty: not told."""

    shape: KernelShape
    ms: float
    network: str = ""


class ShapeFit:
    """Predicts kernels from the timed ones; equal shapes count once, as their mean."""

    def __init__(self, rows: Sequence[TimedShape]) -> None:
        self.rows = tuple(rows)
        grouped: dict[KernelShape, list[float]] = {}
        for row in rows:
            grouped.setdefault(row.shape, []).append(row.ms)
        self.known = {shape: float(np.mean(found)) for shape, found in grouped.items()}
        self._rooflines: dict[str, _Roofline] = {}
        self._places: dict[KernelShape, tuple[Channels, Floats]] = {}  # channels and log residuals
        for operator in dict.fromkeys(shape.operator for shape in self.known):
            shapes = [shape for shape in self.known if shape.operator == operator]
            ms = np.array([self.known[shape] for shape in shapes])
            counts = np.array([len(grouped[shape]) for shape in shapes])
            roofline = self._rooflines[operator] = _Roofline(shapes, ms, counts)
            for place in dict.fromkeys(shape.place for shape in shapes):
                here = np.array([i for i, shape in enumerate(shapes) if shape.place == place])
                channels = np.array([shapes[i].channels for i in here], dtype=np.int64)
                self._places[place] = channels, np.log(ms[here] / roofline(place, channels))

    def place_of(self, shape: KernelShape) -> KernelShape | None:
        """The place that tells of `shape`, its window left out where the table does not have it.

        None where the operator was never timed; a place of a known operator need not have been timed itself.
        """
        place = shape.place
        without_window = KernelShape(place.operator, 0, 0, place.out_size, place.stride)
        if place not in self._places and without_window in self._places:
            return without_window
        if place.operator not in self._rooflines:
            return None
        told = {other.window for other in self._places if other.operator == place.operator}
        return without_window if told == {0} else place

    def predict(self, place: KernelShape, channels: Channels) -> Floats:
        """(N, 2) -> ms (N,). Timed kernels are what they are."""
        ms = self._rooflines[place.operator](place, channels)
        if place in self._places:
            known, residuals = self._places[place]
            distances = np.abs(np.log(channels)[:, None] - np.log(known)[None]).sum(axis=2)
            weights = 1 / (distances + SMOOTHING)
            same = (channels[:, None] == known[None]).all(axis=2)
            # A kernel that was timed is what it was.
            weights = np.where(same.any(axis=1)[:, None], same, weights)
            ms = ms * np.exp((weights * residuals).sum(axis=1) / weights.sum(axis=1))
        return np.asarray(ms)

    def is_exact(self, place: KernelShape, channels: Channels) -> NDArray[np.bool_]:
        """(N, 2) -> (N,): whether these very kernels were timed."""
        if place not in self._places:
            return np.zeros(len(channels), dtype=bool)
        return np.asarray((channels[:, None] == self._places[place][0][None]).all(axis=2).any(axis=1))

    def is_nearby(self, place: KernelShape, channels: Channels) -> NDArray[np.bool_]:
        """(N, 2) -> (N,): whether the channels are within, or close to, what was timed at that place."""
        if place not in self._places:
            return np.zeros(len(channels), dtype=bool)
        known = self._places[place][0]
        low, high = known.min(axis=0) / NEARBY, known.max(axis=0) * NEARBY
        return np.asarray(((channels >= low) & (channels <= high)).all(axis=1))

    def sigmas(self) -> dict[str, float]:
        """Operator -> relative error to expect of a kernel not timed: each timed one left out in turn."""
        found = {}
        for operator in self._rooflines:
            rows = [row for row in self.rows if row.shape.operator == operator]
            errors = []
            for shape in dict.fromkeys(row.shape for row in rows):
                rest = [row for row in rows if row.shape != shape]
                if any(row.shape.place == shape.place for row in rest):
                    predicted = ShapeFit(rest).predict(shape.place, np.array([shape.channels]))[0]
                    errors.append(float(predicted) / self.known[shape] - 1)
            found[operator] = float(np.sqrt(np.mean(np.square(errors)))) if errors else UNKNOWN_ERROR
        return found

    def calibration(self) -> Calibration:
        """A whole model is the sum of its kernels; the band is how well models left out in turn are predicted.

        Models most of whose latency lies outside of what the others tell are not held against the prediction.
        """
        errors, inside = [], []
        for network in dict.fromkeys(row.network for row in self.rows if row.network):
            error, share = self._left_out(network)
            errors.append(error)
            inside.append(share)
        trusted = np.array([share >= 0.5 for share in inside], dtype=bool)
        absolute = np.abs(np.array(errors, dtype=np.float64)[trusted])
        if len(absolute) < 2:
            absolute = np.array([UNKNOWN_ERROR])
        return Calibration(
            offset_ms=0.0, scale=1.0, p50_ratio=1.0, band=max(BAND_FLOOR, error_band(absolute, np.ones(len(absolute)))),
            loo_mape=float(absolute.mean()), models=len(errors),
        )  # fmt: skip

    def left_out_errors(self) -> dict[str, float]:
        """Network -> relative error of its sum, predicted from the others."""
        networks = dict.fromkeys(row.network for row in self.rows if row.network)
        return {network: self._left_out(network)[0] for network in networks}

    def _left_out(self, network: str) -> tuple[float, float]:
        """Relative error of the sum, and the share of the latency that the other networks tell of."""
        others = ShapeFit([row for row in self.rows if row.network != network])
        mine = [row for row in self.rows if row.network == network]
        total, predicted, nearby = sum(row.ms for row in mine), 0.0, 0.0
        for row in mine:
            place, channels = others.place_of(row.shape), np.array([row.shape.channels])
            if place is None:  # nobody else has that operator: neither right nor wrong
                predicted += row.ms
                continue
            predicted += float(others.predict(place, channels)[0])
            nearby += row.ms * float(others.is_nearby(place, channels)[0])
        return predicted / total - 1, nearby / total


class _Roofline:
    """Latency of one operator at any place and channels: a non-negative sum of what it has to do."""

    def __init__(self, shapes: Sequence[KernelShape], ms: Floats, counts: NDArray[np.int64]) -> None:
        designs = {a: np.concatenate([_work(s.place, np.array([s.channels]), a) for s in shapes]) for a in ALIGNED}
        scales = {a: np.maximum(design.max(axis=0), 1e-9) for a, design in designs.items()}
        relative = {a: designs[a] / scales[a] / ms[:, None] for a in ALIGNED}
        self._aligned = min(ALIGNED, key=lambda a: (_left_out_error(relative[a]), a))
        # A shape that networks have often counts as often.
        weights = np.sqrt(counts.astype(np.float64))
        found, _ = nnls(relative[self._aligned] * weights[:, None], weights)
        self._coefficients = found / scales[self._aligned]

    def __call__(self, place: KernelShape, channels: Channels) -> Floats:
        return np.asarray(_work(place, channels, self._aligned) @ self._coefficients)


def _work(place: KernelShape, channels: Channels, aligned: int) -> Floats:
    """(N, 2) -> (N, terms): launch, MACs, bytes, and MACs on channels that are no multiple of `aligned`."""
    inputs, outputs = channels[:, 0].astype(np.float64), channels[:, 1].astype(np.float64)
    pixels = float(place.out_size) ** 2
    if place.operator not in CONVOLUTIONS:
        weights = inputs * outputs if place.operator == "linear" else outputs * pixels
        return np.stack([np.ones(len(channels)), weights], axis=1)
    pairs = outputs if place.operator == "depthwise" else inputs * outputs
    macs = pairs * pixels * max(place.window, 1) ** 2
    terms = [np.ones(len(channels)), macs, outputs * pixels, inputs * pixels * place.stride**2]
    if place.operator != "depthwise":
        terms.append(pairs)
    if aligned > 1:
        terms.append(macs * (outputs % aligned > 0))
        if place.operator == "conv1x1":
            terms.append(macs * (inputs % aligned > 0))
    return np.stack(terms, axis=1)


def _left_out_error(design: Floats) -> float:
    """Mean relative error of least squares at each row of a design of relative errors, fitted without that row."""
    inverse = np.linalg.pinv(design, rcond=1e-9)
    leverage = np.einsum("ij,ji->i", design, inverse).clip(0, 0.95)
    return float(np.mean(np.abs(design @ (inverse @ np.ones(len(design))) - 1) / (1 - leverage)))
