"""How kernels of a type climb with their channels on a device, read from widths around powers of two.

Kernels of t-1, t and t+1 channels show whether channels are filled up to multiples of t, and whether widths that are
no multiple of t run other, slower code. The steps are worked out anew from the table's kernels whenever it is asked
for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from amc_mobile.device.conditions import Conditions
from amc_mobile.kernels.kernel import Kernel, Shape
from amc_mobile.latency.kernel_fit import LEAST_SIGMA, clearly_best, left_out_errors
from amc_mobile.latency.table import LatencyTable

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.kernel import Expression
    from amc_mobile.kernels.template import KernelSite, Template

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
Axis = Literal["in", "out", "in and out"]
Line = dict[int, tuple[Kernel, float]]  # kernels that differ in their width along one axis only, and their ms

TILES = (4, 8, 16, 32, 64)
CLASSES = TILES[:-1]  # the last would rest on one width
WIDEST = TILES[-1] + 1
FEWEST_TILES = 2  # that a line of kernels must be measured around
SLOWER = 0.05  # relative; a width that costs more than the next multiple by this runs other code
RISE = 0.05  # relative; what filling up to a tile costs at least: less may be noise
SHORTEST_MS = 0.003  # of the widest kernel; the clock cannot resolve steps of shorter ones
LEAST_MULTIPLE = 8  # of kept channels: what a search takes where nothing was probed


@dataclass(frozen=True)
class KernelType:
    """What is probed as one. `name`: operator, window and stride, e.g. `conv 3x3/2`; `dtype`: as an operator's."""

    name: str
    dtype: str

    @classmethod
    def of(cls, kernel: Kernel) -> KernelType:
        main = kernel.main
        word = "conv" if main.kind in ("conv1x1", "convkxk") else main.kind
        return cls(f"{word} {main.window_label}".rstrip(), main.dtype)


@dataclass(frozen=True)
class ChannelSteps:
    """What was found for one type along one axis. 1 means no steps, and no class.

    `tile`: channels are filled up to multiples of this. `aligned`: widths that are no multiple of this run slower code;
    `slowdown`: by how much, relative, just below a multiple. `example`: the widest kernel measured, and its `ms`.
    """

    kernel_type: KernelType
    axis: Axis
    tile: int
    aligned: int
    slowdown: float
    points: int
    example: str
    ms: float

    def to_document(self) -> dict[str, Any]:
        document = asdict(self)
        return {**document.pop("kernel_type"), **document}


def probe_widths(size: int) -> list[int]:
    """The widths around each tile, none above `size`; empty where those are too few to judge by."""
    widths = [width for tile in TILES for width in (tile - 1, tile, tile + 1) if width <= size]
    return widths if len(_tiles_among(widths)) >= FEWEST_TILES else []


def widths_around_tiles(site: KernelSite, sizes: Widths) -> list[Widths]:
    """Plans, each (groups,), that a probe of this site measures: one group around each tile, all others full."""
    groups = [group for expression in site.axes if (group := _own_group(site, expression)) is not None]
    return [_with(sizes, group, width) for group in groups for width in probe_widths(int(sizes[group]))]


def probe_points(template: Template) -> list[tuple[int, Widths]]:
    """(site, widths (groups,)) of the kernels to measure, all other groups full.

    Of each type and axis one site: as many tiles fit into its width as into any, and then its narrow kernels are the
    longest.
    """
    candidates: list[tuple[tuple[int, int, int], tuple[KernelType, Axis], tuple[int, int]]] = []
    for site in template.sites:
        full = template.kernel_at(site.index, template.sizes)
        for expression in site.axes:
            group = _own_group(site, expression)
            if group is None or not (widths := probe_widths(int(template.sizes[group]))):
                continue
            narrow = template.kernel_at(site.index, _with(template.sizes, group, widths[0]))
            if (axis := _moved(full, narrow)) is not None:
                rank = (min(int(template.sizes[group]), TILES[-1]), narrow.macs, narrow.activation_bytes)
                candidates.append((rank, (KernelType.of(full), axis), (site.index, group)))
    chosen = {key: place for _, key, place in sorted(candidates, key=lambda found: found[0])}  # the last one stays
    return [
        (site_index, _with(template.sizes, group, width))
        for site_index, group in chosen.values()
        for width in probe_widths(int(template.sizes[group]))
    ]


def stored_steps(table: LatencyTable, conditions: Conditions) -> list[ChannelSteps]:
    """What the table's kernels under `conditions` show; empty where none were probed."""
    if conditions.is_foreign:
        return []
    documents, measured = table.kernel_documents(), table.kernels(conditions)
    described = [key for key in measured if "operators" in documents[key]]  # imported kernels may have less
    return find_steps((Kernel.from_document(documents[key]), measured[key].low_ms) for key in described)


def find_steps(measured: Iterable[tuple[Kernel, float]]) -> list[ChannelSteps]:
    """By type and axis. `measured`: kernels and their ms; those not around tiles, or too short, are looked past."""
    lines: dict[tuple[KernelType, Axis], dict[object, Line]] = {}
    for kernel, ms in measured:
        into, out = kernel.main.in_channels, kernel.main.out_channels
        ways: list[tuple[Axis, int, int]] = [("in", into, out), ("out", out, into)]
        if kernel.keeps_channels:
            ways = [("in and out", out, 0)]
        for axis, width, other in ways:
            if width <= WIDEST:
                line = lines.setdefault((KernelType.of(kernel), axis), {}).setdefault((_place(kernel), other), {})
                line[width] = (kernel, ms)
    steps = []
    for (kernel_type, axis), of_type in sorted(lines.items(), key=lambda item: (item[0][0].name, item[0][1])):
        probed = [line for line in of_type.values() if len(_tiles_among(line)) >= FEWEST_TILES]
        line = max(probed, key=lambda line: (len(_tiles_among(line)), line[max(line)][1]), default={})
        if line and line[max(line)][1] >= SHORTEST_MS:
            steps.append(_judged(kernel_type, axis, line))
    return steps


def _judged(kernel_type: KernelType, axis: Axis, line: Line) -> ChannelSteps:
    widths = np.array(sorted(line), dtype=np.int64)
    tile, aligned, slowdown = judge_steps(widths, np.array([line[width][1] for width in sorted(line)]))
    widest, ms = line[max(line)]
    return ChannelSteps(kernel_type, axis, tile, aligned, slowdown, len(line), widest.label, ms)


def judge_steps(widths: Widths, ms: Floats) -> tuple[int, int, float]:
    """(tile, aligned, slowdown) of one line of kernels; `widths` (points,) ascending."""
    slowdowns = {aligned: _neighbours(widths, ms, aligned, -1) for aligned in CLASSES}
    classes = [aligned for aligned, slowdown in slowdowns.items() if slowdown > SLOWER]
    tiles = [tile for tile in TILES if _neighbours(widths, ms, tile, 1) > RISE]

    def clearest(candidates: Iterable[tuple[int, int]], simplest: tuple[int, int]) -> tuple[int, int]:
        # What predicts within the noise cannot be improved.
        errors = {
            (tile, aligned): max(float(left_out_errors(_terms(widths, tile, aligned), ms).mean()), LEAST_SIGMA)
            for tile, aligned in [simplest, *candidates]
        }
        return clearly_best(errors, simplest)

    alone = clearest([*((tile, 1) for tile in tiles), *((1, aligned) for aligned in classes)], (1, 1))
    tile, aligned = clearest(itertools.product(tiles, classes), alone)
    return tile, aligned, slowdowns.get(aligned, 0.0)


def aligned_multiple(found: Sequence[ChannelSteps]) -> int:
    """What kept channels should be multiples of, so that no kernel runs slower code; at least LEAST_MULTIPLE."""
    return math.lcm(LEAST_MULTIPLE, *(steps.aligned for steps in found))


def _terms(widths: Widths, tile: int, aligned: int) -> Floats:
    """(points, terms): launch, work on filled channels, and that work again where the width is outside the class."""
    filled = np.ceil(widths / tile) * tile
    columns = [np.ones(len(widths)), filled]
    return np.stack([*columns, filled * (widths % aligned > 0)] if aligned > 1 else columns, axis=1)


def _neighbours(widths: Widths, ms: Floats, step: int, offset: int) -> float:
    """How much more `offset` channels beyond a multiple of `step` cost than the multiple, relative; the median."""
    cost = dict(zip(widths.tolist(), ms.tolist(), strict=True))
    ratios = [cost[width + offset] / cost[width] for width in cost if width % step == 0 and width + offset in cost]
    return float(np.median(ratios)) - 1 if ratios else 0.0


def _tiles_among(widths: Iterable[int]) -> list[int]:
    """The tiles that `widths` surround."""
    present = set(widths)
    return [tile for tile in TILES if {tile - 1, tile, tile + 1} <= present]


def _place(kernel: Kernel) -> tuple[tuple[str, str, Shape, str], ...]:
    """What kernels have in common that differ in their channels only."""
    return tuple((o.name, o.window_label, o.out_map, o.dtype) for o in kernel.operators)


def _own_group(site: KernelSite, axis: Expression) -> int | None:
    """The group whose channels `axis` counts one by one, where no other axis depends on it."""
    if axis.constant or len(axis.terms) != 1 or axis.terms[0][1] != 1:
        return None
    group = axis.terms[0][0]
    alone = sum(group == other for one in site.axes for other, _ in one.terms) == 1
    return group if alone else None


def _moved(full: Kernel, narrow: Kernel) -> Axis | None:
    """Which channels differ."""
    moves_in = full.main.in_channels != narrow.main.in_channels
    moves_out = full.main.out_channels != narrow.main.out_channels
    names: Mapping[tuple[bool, bool], Axis] = {
        (True, False): "in", (False, True): "out", (True, True): "in and out",
    }  # fmt: skip
    return names.get((moves_in, moves_out))


def _with(sizes: Widths, group: int, width: int) -> Widths:
    widths = sizes.copy()
    widths[group] = width
    return widths
