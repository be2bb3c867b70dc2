"""Medians over rounds with bootstrap intervals, and the definitions of docs/mc2.md.

Symbols: Tg the unsplit product alone, Tc the collective alone, Ts one after the other, Tf the fused op; seconds, or
arrays of them. t ranks, S chunks for each rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95

Seconds = Any  # a float, or an array of one for each round


@dataclass(frozen=True)
class Estimate:
    """A median over rounds and its 95% interval."""

    median: float
    low: float
    high: float

    def percent(self) -> str:
        return f"{100 * self.median:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """The median of one figure per round; interval: percentiles of the medians of 2000 resamples, seed 0.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13, the percentile interval.

    Raises:
        ValueError: no value.
    """
    array = np.asarray(values, float)
    if array.size == 0:
        raise ValueError("estimate: values must be at least one, got none")
    drawn = np.random.default_rng(0).integers(0, array.size, (RESAMPLES, array.size))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.median(array[drawn], axis=1), [tail, 100 - tail])
    return Estimate(float(np.median(array)), float(low), float(high))


def communication_ratio(product: Seconds, collective: Seconds) -> Seconds:
    """c = Tc / Tg"""
    return collective / product


def hidden(product: Seconds, collective: Seconds, fused: Seconds) -> Seconds:
    """H = 1 - (Tf - Tg) / Tc: the share of the collective's time that the fused op does not add to the product's."""
    return 1 - (fused - product) / collective


def effective(product: Seconds, serial: Seconds, fused: Seconds) -> Seconds:
    """E = 1 - (Tf - Tg) / (Ts - Tg)

    Source: Chang et al. 2024, Flux, arXiv:2406.06858: the overlap efficiency.
    """
    return 1 - (fused - product) / (serial - product)


def bound_reached(
    product: Seconds, collective: Seconds, fused: Seconds, num_chunks: int, world_size: int, reduces_all: bool = False
) -> Seconds:
    """B = max(Tg, Tc + Tg / (t S)) / Tf: 1 when as fast as overlap in chunks can be, whose first or last is alone.

    All-reduce: max(Tg + Tc / S, Tc + Tg / S) / Tf, since no product is left beside the last chunk's collective.
    """
    if reduces_all:
        return np.maximum(product + collective / num_chunks, collective + product / num_chunks) / fused
    return np.maximum(product, collective + product / (world_size * num_chunks)) / fused


def split_loss(product: Seconds, chunks: Seconds) -> Seconds:
    """The op's own products in its own chunks, without communication, over Tg, minus 1."""
    return chunks / product - 1


def serial_excess(product: Seconds, collective: Seconds, serial: Seconds) -> Seconds:
    """Ts / (Tg + Tc) - 1: 0 when the parts were measured as they run in the whole."""
    return serial / (product + collective) - 1
