"""What a machine does in a second: measured by the probe, or from a data sheet. Nothing here is guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from fusionkit_planner.passes import Work, traffic_bytes
from fusionkit_planner.system import System

from fusionkit.backend import DeviceModel
from fusionkit.errors import argument_error

PROBE = "Run `fusionkit plan probe` on the machine, and give its file"
NODE = 8  # devices that a data sheet's links join
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
        is_mesh: each pair has a link of its own, and no other. So fewer devices have fewer links, and those of one
            group are none of another's.
        processor_seconds: of a device's own processor for each byte that it sends while it receives as many. A host's
            cores move messages: no product runs there meanwhile. 0 where others move them.
    """

    name: str
    devices: int
    bandwidth: float
    latency: float
    is_mesh: bool = False
    processor_seconds: float = 0.0

    def bandwidth_to(self, peers: int) -> float:
        """Of a device to so many others, bytes/s."""
        return self.bandwidth * peers / (self.devices - 1) if self.is_mesh else self.bandwidth


@dataclass(frozen=True, eq=False)
class Rates:
    """One machine.

    Args:
        dtype: of the products.
        peak_flops: FLOP/s that no product exceeds.
        attention_flops: FLOP/s of the fused attention, only of the scores that it computes; None if not measured.
        products: measured; empty where only a data sheet is known, and then products take their time at peak.
        memory_bandwidth, memory_bytes: of a device's own memory.
        levels: of the network, the narrowest first; empty where one device is alone.
        launch_seconds: of one kernel with nothing to do.
        socket_seconds: `processor_seconds` of a level between hosts, which the user names.
        sources: of each rate, in words: "measured here by ...", or the data sheet.
    """

    name: str
    dtype: str
    peak_flops: float
    memory_bandwidth: float
    memory_bytes: float
    attention_flops: float | None = None
    products: tuple[Product, ...] = ()
    levels: tuple[Level, ...] = ()
    launch_seconds: float = 0.0
    socket_seconds: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)

    def product_seconds(self, rows: int, in_features: int, out_features: int) -> float:
        """A product alone: its FLOPs at the rate of the measured shapes that are nearest."""
        return 2.0 * rows * in_features * out_features / _flops(self, rows, in_features, out_features)

    def attention_seconds(self, flops: float) -> float:
        """Of the fused op, where it was measured."""
        return flops / (self.attention_flops or self.peak_flops)

    def traffic_seconds(self, work: Work, system: System) -> float:
        """Kernels that read and write, and compute little."""
        return traffic_bytes(work, system) / self.memory_bandwidth

    def update_seconds(self, elements: float, system: System) -> float:
        """The optimizer's kernels, which read and write."""
        return elements * system.update_bytes / self.memory_bandwidth

    def waiting_seconds(self, kernels: float, collectives: int, busy: float) -> float:
        """A device with less to do than its host has to launch waits for it. A collective is one launch."""
        return max(0.0, (kernels + collectives) * self.launch_seconds - busy)

    def level(self, devices: int) -> Level:
        """The narrowest that joins so many neighbours.

        Raises:
            ValueError: none does: how fast they are joined is unknown.
        """
        for level in self.levels:
            if level.devices >= devices:
                return level
        most = max((level.devices for level in self.levels), default=1)
        rule, context = f"at most {most}, which the rates of {self.name} join", "the link between more is unknown"
        raise argument_error("plan", "--devices", rule, devices, context, PROBE)

    def gather_seconds(self, devices: int, num_bytes: float, stride: int = 1) -> float:
        """An all-gather or reduce-scatter by rings: each device sends (devices - 1) parts of num_bytes / devices.

        Args:
            devices: that take part.
            num_bytes: of the whole result.
            stride: from one to the next. So many such groups send at the same time.
        """
        if devices == 1:
            return 0.0
        level = self.level(devices * stride)
        return (devices - 1) * (num_bytes / devices / self._ring_bandwidth(level, devices, stride) + level.latency)

    def all_reduce_seconds(self, devices: int, num_bytes: float, stride: int = 1) -> float:
        """A reduce-scatter, then a gather."""
        return 2.0 * self.gather_seconds(devices, num_bytes, stride)

    def moving_seconds(self, devices: int, num_bytes: float, stride: int = 1) -> float:
        """Of `gather_seconds`, those in which a device's own processor moves bytes and can compute nothing."""
        if devices == 1:
            return 0.0
        sent = (devices - 1) / devices * num_bytes
        whole = self.gather_seconds(devices, num_bytes, stride)
        return min(whole, sent * self.level(devices * stride).processor_seconds)

    def send_seconds(self, num_bytes: float, distance: int) -> float:
        """From a device to the one that stands so many further on, while all of a level's devices send."""
        level = self.level(distance + 1)
        return num_bytes / level.bandwidth_to(1) + level.latency

    def share_links(self, devices: int, others: int) -> bool:
        """Whether what moves between so many neighbours takes the links of what moves between so many others."""
        one, other = self.level(devices), self.level(others)
        return one.name == other.name and not one.is_mesh

    def _ring_bandwidth(self, level: Level, devices: int, stride: int) -> float:
        """A ring that leaves a node once has the links of all its devices there, but for the rings beside it."""
        inside = [one for one in self.levels if one.devices < level.devices]
        if not inside or level.name == inside[-1].name:
            return level.bandwidth_to(devices - 1)
        return min(inside[-1].bandwidth, level.bandwidth * inside[-1].devices / min(stride, inside[-1].devices))

    def as_json(self) -> dict[str, Any]:
        """What `read` reads."""
        return {**asdict(self), "sources": dict(self.sources)}


@lru_cache(maxsize=65536)
def _flops(rates: Rates, *shape: int) -> float:
    """Log-linear mean over the nearest measured shapes, weighted by 1 / distance^2 of their logarithms."""
    weights, logs = 0.0, 0.0
    for distance, flops in sorted((_distance(one, shape), one.flops) for one in rates.products)[:NEAREST]:
        weight = 1 / (distance + 1e-6)
        weights, logs = weights + weight, logs + weight * math.log(flops)
    return min(rates.peak_flops, math.exp(logs / weights)) if weights else rates.peak_flops


def _distance(product: Product, shape: tuple[int, ...]) -> float:
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
    mesh = model.link_topology == "mesh"
    sizes = (2, 4, NODE) if mesh else (NODE,)
    joined = tuple(Level("node", size, model.link_bandwidth * (size - 1 if mesh else 1), 0.0, mesh) for size in sizes)
    stated = "stated peak, nothing measured: "
    names = ("peak_flops", "memory_bandwidth", "memory_bytes", "levels")
    return Rates(
        name=model.name,
        dtype=dtype,
        peak_flops=model.flops[dtype],
        memory_bandwidth=model.memory_bandwidth,
        memory_bytes=model.memory_bytes,
        levels=joined,
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
