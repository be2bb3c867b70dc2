"""What a machine does in a second: measured by the probe, or from a data sheet. Nothing here is guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.backend import DeviceModel
from fusionkit.errors import argument_error

PROBE = "Run `fusionkit plan probe` on the machine, and give its file"
NEAREST = 3  # measured shapes that a shape's efficiency is taken from


@dataclass(frozen=True)
class Product:
    """A measured product [rows, in_features] @ [in_features, out_features]."""

    rows: int
    in_features: int
    out_features: int
    seconds: float

    @property
    def flops(self) -> float:
        """FLOP/s."""
        return 2.0 * self.rows * self.in_features * self.out_features / self.seconds


@dataclass(frozen=True)
class Level:
    """A level of the network.

    Args:
        name: such as "node".
        devices: that are together at this level, at most.
        bandwidth: bytes/s of one device in one direction, while all of them send.
        latency: seconds of a message without content.
    """

    name: str
    devices: int
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Rates:
    """One machine.

    Args:
        dtype: of the products.
        peak_flops: FLOP/s that no product exceeds.
        products: measured; empty where only a data sheet is known, and then products take their time at peak.
        memory_bandwidth, memory_bytes: of a device's own memory.
        levels: of the network, the narrowest first; empty where one device is alone.
        launch_seconds: of one kernel with nothing to do.
        sources: of each rate, in words: "measured here by ...", or the data sheet.
    """

    name: str
    dtype: str
    peak_flops: float
    memory_bandwidth: float
    memory_bytes: float
    products: tuple[Product, ...] = ()
    levels: tuple[Level, ...] = ()
    launch_seconds: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)

    def product_seconds(self, rows: float, in_features: float, out_features: float) -> float:
        """A product alone: its FLOPs at the rate of the measured shapes that are nearest, plus its launch."""
        return self.launch_seconds + 2.0 * rows * in_features * out_features / self._flops(
            (rows, in_features, out_features)
        )

    def memory_seconds(self, num_bytes: float) -> float:
        """A kernel that reads and writes so many bytes, and computes little."""
        return self.launch_seconds + num_bytes / self.memory_bandwidth

    def level(self, devices: int) -> Level:
        """The narrowest that joins so many.

        Raises:
            ValueError: none does: how fast they are joined is unknown.
        """
        for level in self.levels:
            if level.devices >= devices:
                return level
        most = max((level.devices for level in self.levels), default=1)
        raise argument_error(
            "plan", "devices", f"at most {most}, which {self.name}'s rates join", devices, "their link is unknown", PROBE
        )

    def gather_seconds(self, devices: int, num_bytes: float, span: int | None = None) -> float:
        """An all-gather or reduce-scatter by rings: each device sends (devices - 1) parts of num_bytes / devices.

        Args:
            devices: that take part.
            num_bytes: of the whole result.
            span: devices from the first to the last of them, which decides the level; default devices.
        """
        if devices == 1:
            return 0.0
        level = self.level(span or devices)
        return (devices - 1) * (num_bytes / devices / level.bandwidth + level.latency)

    def all_reduce_seconds(self, devices: int, num_bytes: float, span: int | None = None) -> float:
        """A reduce-scatter, then a gather."""
        return 2.0 * self.gather_seconds(devices, num_bytes, span)

    def send_seconds(self, num_bytes: float, span: int) -> float:
        """From one device to another."""
        level = self.level(span)
        return num_bytes / level.bandwidth + level.latency

    def as_json(self) -> dict[str, Any]:
        """What `read` reads."""
        return {**asdict(self), "sources": dict(self.sources)}

    def _flops(self, shape: tuple[float, float, float]) -> float:
        """Log-linear mean over the nearest measured shapes, weighted by 1 / distance^2 of their logarithms."""
        weights, logs = 0.0, 0.0
        for distance, flops in sorted((_distance(one, shape), one.flops) for one in self.products)[:NEAREST]:
            weight = 1 / (distance + 1e-6)
            weights, logs = weights + weight, logs + weight * math.log(flops)
        return min(self.peak_flops, math.exp(logs / weights)) if weights else self.peak_flops


def _distance(product: Product, shape: tuple[float, float, float]) -> float:
    measured = (product.rows, product.in_features, product.out_features)
    return sum(math.log(max(wanted, 1) / have) ** 2 for have, wanted in zip(measured, shape, strict=True))


def of(model: DeviceModel, dtype: str = "bfloat16") -> Rates:
    """From the figures that a backend ships: peaks, so what is computed from them is a lower bound.

    Raises:
        ValueError: the backend does not state a rate for this dtype.
    """
    if dtype not in model.flops:
        known = " or ".join(model.flops) or "a device with stated rates"
        raise argument_error("plan", "dtype", known, dtype, f"{model.name} states no other rate", PROBE)
    joined = Level("node", 8, model.link_bandwidth * (7 if model.link_topology == "mesh" else 1), 0.0)
    stated = "stated peak, nothing measured: "
    names = ("peak_flops", "memory_bandwidth", "memory_bytes", "levels")
    return Rates(
        name=model.name,
        dtype=dtype,
        peak_flops=model.flops[dtype],
        memory_bandwidth=model.memory_bandwidth,
        memory_bytes=model.memory_bytes,
        levels=(joined,),
        sources={name: stated + model.source for name in names},
    )


def read(path: str | Path) -> Rates:
    """A file that `fusionkit plan probe` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        products = tuple(Product(**one) for one in found.pop("products"))
        levels = tuple(sorted((Level(**one) for one in found.pop("levels")), key=lambda level: level.devices))
        return Rates(products=products, levels=levels, **found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise argument_error("plan", "--device", "a file of the probe", repr(str(path)), str(error), PROBE) from None
