"""What the tables of sizes ask of the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from fusionkit_backends.gpu.kernels.launch import INTERPRETED
from triton.runtime import driver


@dataclass(frozen=True)
class Card:
    """Compute capability, 80 for 8.0, and the number of multiprocessors."""

    capability: int
    num_multiprocessors: int


A100, H100 = Card(80, 108), Card(90, 132)  # H200 has the H100's multiprocessors

_assumed: Card | None = Card(90, 3) if INTERPRETED else None  # few, so that the tests' small calls still share rows


def card() -> Card:
    """The current device's, or the assumed one."""
    return _assumed or _ask(driver.active.get_current_device())


@lru_cache
def _ask(device: int) -> Card:
    count = driver.active.utils.get_device_properties(device)["multiprocessor_count"]
    return Card(int(driver.active.get_current_target().arch), count)


@contextmanager
def assumed(card: Card) -> Iterator[None]:
    """Choose sizes as on this card: to compile for one that is not here."""
    global _assumed
    before, _assumed = _assumed, card
    try:
        yield
    finally:
        _assumed = before
