"""A real phone's layers: leave one of four MobileNet-V1 widths out, predict its latency from the other three.

Reads phone_latency/pixel1_mobilenet_v1_layers.csv below the folder that AMC_MOBILE_DATA names: per network, run and
layer the average milliseconds on a Pixel 1. With three widths per layer a table by layer shape says little, so layers
of one kind share a roofline (launch, MACs, bytes, work on channels that are no multiple of a tile, which is found by
leaving points out) and each layer keeps its own residual. Prints a table, or with --json one document: name, figures
(percent), baselines (MACs alone, the nearest width of each layer), conditions. --quick is the same: it takes a second.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

import amc_mobile as amc

Floats = NDArray[np.float64]
FILE = "phone_latency/pixel1_mobilenet_v1_layers.csv"
COLUMNS = ("model", "run", "layer", "kind", "cin", "cout", "hin", "stride", "hout", "macs", "avg_ms")
ALIGNED = (1, 16, 32)  # channels that are no multiple of one of these may run slower code
SMOOTHING = 0.1  # of the logarithm of a layer's size, between the residuals of its other widths


@dataclass(frozen=True)
class Layer:
    """One layer at one width, ms the median over the runs."""

    name: str
    kind: str
    cin: int
    cout: int
    hin: int
    hout: int
    macs: int
    ms: float

    def features(self, aligned: int) -> list[float]:
        """What its latency is a non-negative sum of."""
        output = self.cout * self.hout**2
        if self.kind not in ("pw", "dw", "conv"):
            return [1.0, float(self.cin * self.cout if self.kind == "fc" else self.cout)]
        values = [1.0, self.macs, output, self.cin * self.hin**2]
        if self.kind == "pw":
            values.append(self.cin * self.cout)
        if aligned > 1:
            values.append(self.macs * (self.cout % aligned > 0))
            if self.kind == "pw":
                values.append(self.macs * (self.cin % aligned > 0))
        return [float(value) for value in values]

    @property
    def size(self) -> float:
        return float(np.log(self.cin * self.cout))


Network = dict[str, Layer]


def read(path: Path) -> dict[str, Network]:
    """Network -> layer -> facts. Raises InvalidInput for a missing file, CorruptFile for one that is no such log."""
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
    except OSError as error:
        raise amc.InvalidInput(f"{path}: {error.strerror}", next_step="check AMC_MOBILE_DATA") from error
    found: dict[tuple[str, str], list[tuple[Layer, str]]] = {}
    for number, row in enumerate(rows, start=2):
        missing = [name for name in COLUMNS if not row.get(name)]
        if missing:
            raise amc.CorruptFile(path, f"line {number}: no {', '.join(missing)}")
        try:
            cin, cout, hin, hout, macs = (int(row[name]) for name in ("cin", "cout", "hin", "hout", "macs"))
            ms = float(row["avg_ms"])
        except ValueError as error:
            raise amc.CorruptFile(path, f"line {number}: {error}") from error
        if not (0 < ms < float("inf")):
            raise amc.CorruptFile(path, f"line {number}: a latency of {ms} ms is not possible")
        layer = Layer(row["layer"], row["kind"], cin, cout, hin, hout, macs, ms)
        known = found.setdefault((row["model"], row["layer"]), [])
        if row["run"] in [run for _, run in known]:
            raise amc.CorruptFile(path, f"line {number}: {row['layer']} of {row['model']} twice in run {row['run']}")
        known.append((layer, row["run"]))
    networks: dict[str, Network] = {}
    for (model, name), runs in found.items():
        first = runs[0][0]
        median = float(np.median([layer.ms for layer, _ in runs]))
        networks.setdefault(model, {})[name] = Layer(
            name, first.kind, first.cin, first.cout, first.hin, first.hout, first.macs, median
        )
    if len(networks) < 3 or len({tuple(network) for network in networks.values()}) != 1:
        raise amc.CorruptFile(path, "not the same layers of at least three networks")
    return networks


def left_out_error(design: Floats) -> float:
    """Mean relative error of least squares at each row of a design of relative errors, fitted without that row."""
    inverse = np.linalg.pinv(design, rcond=1e-9)
    leverage = np.einsum("ij,ji->i", design, inverse).clip(0, 0.95)
    return float(np.mean(np.abs(design @ (inverse @ np.ones(len(design))) - 1) / (1 - leverage)))


def predict(held_out: Network, others: list[Network]) -> dict[str, float]:
    """Layer -> ms."""
    predicted = {}
    for kind in {layer.kind: None for layer in held_out.values()}:
        names = [name for name, layer in held_out.items() if layer.kind == kind]
        known = [network[name] for network in others for name in names]
        ms = np.array([layer.ms for layer in known])
        designs = {a: np.array([layer.features(a) for layer in known]) for a in ALIGNED}
        scales = {a: np.maximum(np.abs(design).max(axis=0), 1e-9) for a, design in designs.items()}
        relative = {a: designs[a] / scales[a] / ms[:, None] for a in ALIGNED}
        aligned = min(ALIGNED, key=lambda a: (left_out_error(relative[a]), a))
        coefficients, _ = nnls(relative[aligned], np.ones(len(ms)))
        residuals = -np.log(relative[aligned] @ coefficients).reshape(len(others), len(names))
        for column, name in enumerate(names):
            layer = held_out[name]
            base = float(np.array(layer.features(aligned)) / scales[aligned] @ coefficients)
            distances = np.array([abs(network[name].size - layer.size) for network in others])
            predicted[name] = base * float(
                np.exp(np.average(residuals[:, column], weights=1 / (distances + SMOOTHING)))
            )
    return predicted


def macs_alone(held_out: Network, others: list[Network]) -> dict[str, float]:
    ms, macs = (sum(getattr(layer, key) for network in others for layer in network.values()) for key in ("ms", "macs"))
    return {name: layer.macs * ms / macs for name, layer in held_out.items()}


def nearest_width(held_out: Network, others: list[Network]) -> dict[str, float]:
    return {
        name: min((network[name] for network in others), key=lambda known: abs(known.size - layer.size)).ms
        for name, layer in held_out.items()
    }


def judge(
    networks: dict[str, Network], method: Callable[[Network, list[Network]], dict[str, float]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Figures in percent; and network -> layer -> predicted ms."""
    figures, layers = {}, {}
    largest = max(networks, key=lambda name: sum(layer.macs for layer in networks[name].values()))
    for name, network in networks.items():
        found = layers[name] = method(network, [other for key, other in networks.items() if key != name])
        true = sum(layer.ms for layer in network.values())
        errors = [abs(found[key] / layer.ms - 1) * 100 for key, layer in network.items()]
        figures[f"{name}.error"] = (sum(found.values()) / true - 1) * 100
        figures[f"{name}.layers_mape"] = float(np.mean(errors))
    inside = [
        abs(value) for key, value in figures.items() if key.endswith(".error") and not key.startswith(largest + ".")
    ]
    return {"max_error": max(inside), **figures}, layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    data = os.environ.get("AMC_MOBILE_DATA")
    try:
        if not data:
            raise amc.InvalidInput("AMC_MOBILE_DATA is not set", next_step=f"let it name the folder that holds {FILE}")
        networks = read(Path(data) / FILE)
    except amc.AmcMobileError as error:
        sys.exit(f"error: {error.message}\nnext: {error.next_step}")
    figures, layers = judge(networks, predict)
    baselines = {}
    for name, method in (("macs_only", macs_alone), ("nearest", nearest_width)):
        baselines |= {f"{name}.{key}": value for key, value in judge(networks, method)[0].items()}
    rounded = [{key: round(value, 3) for key, value in part.items()} for part in (figures, baselines)]
    conditions = {
        "phone": "Pixel 1, TFLite, one thread", "unit": "percent", "statistic": "median of the runs' averages",
        "max_error": "over the networks between the others' widths; the widest is extrapolated",
    }  # fmt: skip
    if options.json:
        document = {"name": "pixel1", "figures": rounded[0], "baselines": rounded[1], "conditions": conditions}
        print(json.dumps(document, indent=1))
        return
    for name, network in networks.items():
        total = sum(layer.ms for layer in network.values())
        print(f"{name}: {total:.2f} ms, predicted {sum(layers[name].values()):.2f} ({figures[f'{name}.error']:+.2f} %)")
        for key, layer in network.items():
            found = layers[name][key]
            print(f"  {key:8} {layer.cin:5}->{layer.cout:<5} {layer.ms:8.3f} {found:8.3f} {found / layer.ms - 1:+7.1%}")
    for key, value in rounded[1].items():
        print(f"{key:36} {value:8.2f} %")


if __name__ == "__main__":
    main()
