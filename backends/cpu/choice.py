"""Overlapped or one after the other: decided for each call by the model, alike on all ranks, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fusionkit_backends.cpu import overlap, overlap_model
from fusionkit_backends.cpu.overlap_model import Choice, Rates
from fusionkit_backends.cpu.serial import SERIAL

from fusionkit import settings
from fusionkit.errors import NoBackendError
from fusionkit.ledger import ledger
from fusionkit.parallel import Communicator, chunks
from fusionkit.spec import Array

# (rates, rows that a rank contributes or keeps, the weight's shape, itemsize, world_size) -> Choice
Model = Callable[[Rates, int, Sequence[int], int, int], Choice]


def parts(op: str, model: Model, communicator: Communicator, rows: int, weight: Array, x: Array) -> list[slice] | None:
    """The parts of `rows` that move while others are computed; None where the product and the collective run one after
    the other.

    Raises:
        NoBackendError: they would, and FUSIONKIT_STRICT=1 forbids it.
    """
    forced = overlap.forced()
    if communicator.world_size == 1 or 0 in (rows, *weight.shape) or forced is False:
        return None
    if rows < chunks.MIN_ROWS and not forced:  # not worth measuring the group for
        return _serial(op, f"{rows} rows a rank are fewer than a chunk of {chunks.MIN_ROWS}")
    choice = model(overlap_model.rates(communicator, x.dtype), rows, weight.shape, x.itemsize, communicator.world_size)
    if choice.overlaps or forced:
        return choice.parts
    return _serial(
        op,
        f"overlapping is predicted to take {choice.overlapped * 1e3:.3g} ms, and the product and the collective one "
        f"after the other {choice.serial * 1e3:.3g} ms",
    )


def _serial(op: str, reason: str) -> None:
    if settings.current().strict:
        raise NoBackendError(
            f"{op}: {reason}; FUSIONKIT_STRICT=1 forbids to run without overlap. Give it more rows, or unset it"
        )
    ledger().way(op, "cpu", SERIAL).add()


def described(x: Any, weight: Any, more: str = "") -> str:
    """What all ranks must have alike."""
    return f"x {list(x.shape)} {x.dtype}, weight {list(weight.shape)}{more}"
