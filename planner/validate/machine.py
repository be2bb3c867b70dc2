"""A machine whose rates are fitted: few, and each of them physical.

A product's tiles go over the device's cores in waves, so shapes that fill the last wave badly take longer. A host that
launches kernels one by one is a floor. Rings share the links of their nodes. The cards of a node never carry more than
their data sheet says, whatever a few rows ask for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from fusionkit_planner.passes import Work
from fusionkit_planner.system import System
from fusionkit_planner.validate.systems import Device

NODE = 8  # devices
SHARPNESS = 4.0  # the host's time and the device's join as a norm of this order: neither is hidden entirely
# rows and columns of a tile, and its rate by that of the largest
TILES = ((128, 256, 1.0), (128, 128, 0.92), (64, 128, 0.75))
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)  # of the inner dimension, where tiles are too few
LEAST_SPLIT = 1024  # elements that a split keeps


@dataclass(frozen=True)
class Parameter:
    """One fitted number.

    Args:
        begins: where the fit begins.
        spread: of its logarithm: how far rows may easily move it.
    """

    name: str
    begins: float
    spread: float
    meaning: str


def parameters(device: Device) -> list[Parameter]:
    """What is fitted of a device, and of the kernels that ran there."""
    return [
        Parameter("product_rate", device.product_share * device.peak_flops, 0.1, "FLOP/s of a large product"),
        Parameter("inner_overhead", 400.0, 0.5, "inner elements whose time the start of a tile takes"),
        Parameter("attention_rate", 0.35 * device.peak_flops, 0.2, "FLOP/s of attention's products"),
        Parameter("memory_rate", 0.75 * device.memory_bandwidth, 0.3, "bytes/s of kernels between products"),
        Parameter("scores", 1.0, 0.5, "traffic of scores, by what is counted"),
        Parameter("logits", 1.0, 0.7, "traffic of logits, by what is counted"),
        Parameter("gradients", 1.0, 0.7, "traffic of gradients in a micro-batch, by what is counted"),
        Parameter("update", 1.0, 0.5, "traffic of the optimizer, by what is counted"),
        Parameter("wave_share", 0.9, 0.3, "how much of an unfilled wave is lost"),
        Parameter("launch", 20e-6, 0.7, "seconds of the host for each kernel"),
        Parameter("collective_launch", 50e-6, 0.7, "seconds of the host for each collective"),
        Parameter("link_rate", 0.55 * device.link_bandwidth, 0.4, "bytes/s of a ring of four in a node"),
        Parameter("link_growth", math.e, 0.3, "exp of the power by which that grows with the ring's members, plus one"),
        Parameter("latency", 20e-6, 1.0, "seconds of a collective without content"),
        Parameter("send_rate", 0.55 * device.link_bandwidth, 1.0, "bytes/s of a message in a node"),
        Parameter("send_latency", 50e-6, 1.0, "seconds of a message without content"),
        Parameter(
            "node_rate",
            0.8 * device.node_bandwidth,
            0.4,
            "bytes/s of a node's cards together, at most their data sheet's",
        ),
        Parameter("step", 1e-3, 1.0, "seconds of a step beside all else"),
    ]


@lru_cache(maxsize=65536)
def waves(rows: int, in_features: int, out_features: int, cores: int) -> float:
    """Time of a product over that of one whose tiles fill all waves: the best choice of tile and split."""
    best = math.inf
    for high, wide, rate in TILES:
        tiles = math.ceil(rows / high) * math.ceil(out_features / wide)
        waste = tiles * high * wide / (rows * out_features) / rate
        for split in SPLITS:
            if split > 1 and in_features / split < LEAST_SPLIT:
                break
            count = tiles * split
            best = min(best, waste * math.ceil(count / cores) * cores / count * (1.02 if split > 1 else 1.0))
    return best


class FittedMachine:
    """What fitted numbers say, by the names of `parameters`. Arrays of numbers give arrays of seconds."""

    def __init__(self, device: Device, values: Mapping[str, Any]) -> None:
        self.device, self.of = device, values

    def product_seconds(self, rows: int, in_features: int, out_features: int) -> Any:
        ideal = 2.0 * rows * in_features * out_features / self.of["product_rate"]
        filled = waves(rows, in_features, out_features, self.device.cores) ** np.minimum(1.0, self.of["wave_share"])
        return ideal * (1 + self.of["inner_overhead"] / in_features) * filled

    def attention_seconds(self, flops: float) -> Any:
        return flops / self.of["attention_rate"]

    def traffic_seconds(self, work: Work, system: System) -> Any:
        scores = self.of["scores"] * system.score_bytes * work.num_scores
        logits = self.of["logits"] * system.logit_bytes * work.num_logits
        weights = self.of["gradients"] * system.gradient_bytes_moved * work.weights
        return (work.num_bytes + scores + logits + weights) / self.of["memory_rate"]

    def update_seconds(self, elements: float, system: System) -> Any:
        moved = self.of["update"] * system.update_bytes * elements
        return moved / self.of["memory_rate"] + self.of["step"]

    def waiting_seconds(self, kernels: float, collectives: int, busy: Any) -> Any:
        launching = kernels * self.of["launch"] + collectives * self.of["collective_launch"]
        return (busy**SHARPNESS + launching**SHARPNESS) ** (1 / SHARPNESS) - busy

    def gather_seconds(self, devices: int, num_bytes: float, stride: int = 1) -> Any:
        return 0.5 * self.all_reduce_seconds(devices, num_bytes, stride)

    def all_reduce_seconds(self, devices: int, num_bytes: float, stride: int = 1) -> Any:
        """By a ring: each of its members sends twice (devices - 1) / devices of the bytes."""
        if devices == 1:
            return 0.0
        sent = 2 * (devices - 1) / devices * num_bytes
        if devices * stride <= NODE:
            growth = (devices / 4) ** (np.log(self.of["link_growth"]) - 1)
            return sent / (self.of["link_rate"] * growth) + self.of["latency"]
        return sent * min(stride, NODE) / self._node_rate + 3 * self.of["latency"]

    def moving_seconds(self, devices: int, num_bytes: float, stride: int = 1) -> float:
        """Cards have engines that move bytes."""
        return 0.0

    def send_seconds(self, num_bytes: float, distance: int) -> Any:
        if distance < NODE:
            return num_bytes / self.of["send_rate"] + self.of["send_latency"]
        return num_bytes * NODE / self._node_rate + self.of["send_latency"]

    @property
    def _node_rate(self) -> Any:
        return np.minimum(self.of["node_rate"], self.device.node_bandwidth)

    def share_links(self, devices: int, others: int) -> bool:
        return (devices <= NODE) == (others <= NODE)
