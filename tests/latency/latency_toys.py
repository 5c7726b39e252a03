"""A device whose speed the test sets, on a clock that only the device moves; and a network of four kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from amc_mobile.device.conditions import Conditions
from amc_mobile.device.device import Counters, Neighbours, Pass, SessionDevice
from amc_mobile.kernels.kernel import Expression, Kernel, Operator
from amc_mobile.kernels.onnx_layout import Border
from amc_mobile.kernels.template import KernelSite
from amc_mobile.latency.measurement import KernelRequest, ModelMeasurement, ModelRequest
from amc_mobile.latency.table import LatencyTable

CONDITIONS = Conditions(
    device="toy", soc="Abacus 9", os="none", runtime="tflite", runtime_version="1.0", library_sha256="ab",
    delegate="XNNPACK", threads=1, cores="0", clock_mode="fixed",
)  # fmt: skip


@dataclass
class ToyDevice(SessionDevice):
    """Model `b"conv"` takes `ms["conv"] * slowdown(opens so far)`; every run moves the clock by just that."""

    ms: Mapping[str, float]
    slowdown: Callable[[int], float] = lambda opens: 1.0
    now_s: float = 0.0
    opened: list[str] = field(default_factory=list)
    measured_under: Conditions = CONDITIONS
    jobs_per_batch: int = 1
    held: list[str] = field(default_factory=list)  # "taken", "given back", "settled"
    hot: Callable[[int], bool] = lambda opens: False
    load_at: Callable[[int], Neighbours | None] = lambda opens: None
    mhz: Callable[[int], float] | None = None  # of the only cluster, by opens so far
    mhz_ms: float = 0.0

    def conditions(self) -> Conditions:
        return self.measured_under

    @contextmanager
    def open(self, model: bytes) -> Iterator[SimpleNamespace]:
        name = model.decode()
        self.opened.append(name)

        def run() -> None:
            ms = self.ms[name] * self.slowdown(len(self.opened))
            self.now_s += ms / 1000
            self.mhz_ms += ms * self.mhz(len(self.opened)) if self.mhz else 0.0

        yield SimpleNamespace(run=run)

    @contextmanager
    def session(self) -> Iterator[None]:
        self.held.append("taken")
        try:
            yield
        finally:
            self.held.append("given back")

    def counters(self) -> Counters:
        return Counters(clock_ms=self.now_s * 1000, clock_mhz_ms=self.mhz_ms) if self.mhz else Counters()

    def is_steady(self) -> bool:
        return not self.hot(len(self.opened))

    def settle(self) -> None:
        self.held.append("settled")

    def neighbours(self) -> Neighbours | None:
        return self.load_at(len(self.opened))

    def clock(self) -> SimpleNamespace:
        """Stands in for the module `time` of the code that times sessions."""

        def sleep(seconds: float) -> None:
            self.now_s += seconds

        return SimpleNamespace(perf_counter=lambda: self.now_s, sleep=sleep)


def conv(cin: int, cout: int, *, size: int = 8) -> Kernel:
    operator = Operator(
        "CONV_2D",
        inputs=((1, size, size, cin), (cout, 1, 1, cin), (cout,)),
        constants=(False, True, True),
        outputs=((1, size, size, cout),),
        attributes=(("strideH", 1), ("strideW", 1)),
    )
    return Kernel("tflite", (operator,))


def add(channels: int, *, inputs: int = 2, size: int = 8) -> Kernel:
    shape = (1, size, size, channels)
    return Kernel("tflite", (Operator("ADD", (shape,) * inputs, (False,) * inputs, (shape,)),))


def request(name: str, kernel: Kernel | None = None) -> KernelRequest:
    return KernelRequest(kernel or conv(8, len(name) * 8), name.encode)


def passes(*lows_ms: float, samples: int = 4) -> tuple[Pass, ...]:
    return tuple(Pass((low,) * samples) for low in lows_ms)


def add_model(table: LatencyTable, template: str, widths: Sequence[int], measured: ModelMeasurement) -> None:
    """Adds the passes of a whole model."""
    request = ModelRequest(template, tuple(widths), bytes)
    table.add_models([request])
    rows = [(request.key, one) for one in measured.passes]
    table.add_passes(measured.conditions, rows, warmup_runs=measured.warmup_runs)


@dataclass
class ToyTemplate:
    """Groups of 32, 64 and 24 channels; two convolutions, an addition and a convolution over all three groups."""

    sizes: np.ndarray = field(default_factory=lambda: np.array([32, 64, 24], dtype=np.int64))
    group_names: tuple[str, ...] = ("a", "b", "c")
    runtime: str = "tflite"
    borders: tuple[Border, ...] = ()

    def __post_init__(self) -> None:
        a, b, c = (Expression(0, ((group, 1),)) for group in range(3))
        everything = Expression(0, ((0, 1), (1, 1), (2, 1)))
        self.sites = (
            KernelSite(0, "first", "conv1x1", (0,), (a, b), (0, 1)),
            KernelSite(1, "second", "conv1x1", (1,), (b, c), (1, 2)),
            KernelSite(2, "sum", "add", (2,), (c,), (2,)),
            KernelSite(3, "last", "conv1x1", (3,), (everything,), (0, 1, 2)),
            KernelSite(4, "fixed", "conv1x1", (4,), (), ()),
        )

    def kernel_at(self, site: int, widths: np.ndarray) -> Kernel:
        a, b, c = (int(w) for w in widths)
        return (conv(a, b), conv(b, c), add(c), conv(a + b + c, 40), conv(16, 16, size=4))[site]

    def kernels(self, widths: np.ndarray) -> list[Kernel]:
        return [self.kernel_at(site.index, widths) for site in self.sites]


def smooth_ms(kernel: Kernel) -> float:
    """Launch, bytes and MACs, with no steps: what a roofline describes exactly."""
    return 0.002 + kernel.macs * 4e-8 + (kernel.weight_bytes + kernel.activation_bytes) * 5e-8


def stepped_ms(kernel: Kernel) -> float:
    """As if output channels were always filled up to the next multiple of 16."""
    main = kernel.main
    if main.name != "CONV_2D":
        return smooth_ms(kernel)
    out = -(-main.out_channels // 16) * 16
    return 0.002 + main.in_channels * out * 64 * 4e-8 + out * 1e-5


TEMPLATE = ToyTemplate()
GRIDS = [np.arange(8, size + 1, 8) for size in TEMPLATE.sizes]


def all_plans() -> np.ndarray:
    """Every plan on the grid, (N, 3)."""
    mesh = np.meshgrid(*GRIDS, indexing="ij")
    return np.stack([m.ravel() for m in mesh], axis=1)


def true_sum_ms(widths: np.ndarray, cost: Callable[[Kernel], float]) -> np.ndarray:
    return np.array([sum(cost(kernel) for kernel in TEMPLATE.kernels(plan)) for plan in widths])
