"""Whether to overlap: the times of a call, predicted from what was measured once for each group and dtype.

A product of m rows by a packed weight takes weight_elements * (per_weight + m * per_row) seconds; what n bytes to every
peer take is latency + n / bandwidth. The ranks share the slowest measurement, so that all decide alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
from fusionkit_backends.cpu.packed_operand import PackedOperand

from fusionkit.parallel import Communicator
from fusionkit.parallel.chunks import growing_parts, least_rows, most_chunks, num_chunks, shrinking_parts

CHUNK_SECONDS = 2e-4  # of a chunk beside its product: 4.5 ms were seen for 24 of a reduce-scatter over TCP
PRODUCT_SIDE = 2048  # 8 MiB of bfloat16: more than a second-level cache holds, as the weights of a model are
MAX_GROWTH = 3.0  # of parts: c was measured, and the next part is the larger the more it was overestimated
LINK_BYTES = 1 << 20  # ten times the burst of 96 KiB that bench mc2 lets pass unshaped


@dataclass(frozen=True)
class Rates:
    """What the slowest rank measured, in seconds.

    Args:
        per_weight: for each element of the weight, however many rows.
        per_row: for each element of the weight and each row.
        latency: of a message.
        per_byte: of what each peer gets, all peers at once.
        busy: the part of a transfer's time in which it keeps a core busy: it cannot hide there.
    """

    per_weight: float
    per_row: float
    latency: float
    per_byte: float
    busy: float

    def product(self, rows: float, weight_elements: int) -> float:
        return weight_elements * (self.per_weight + rows * self.per_row)

    def transfer(self, num_bytes: float) -> float:
        return self.latency + num_bytes * self.per_byte


@dataclass(frozen=True)
class Choice:
    """What was predicted, in seconds, and the parts into which the rows are cut."""

    parts: list[slice]
    overlapped: float
    serial: float

    @property
    def overlaps(self) -> bool:
        return self.overlapped < self.serial


_measured: WeakKeyDictionary[Communicator, dict[str, Rates]] = WeakKeyDictionary()


def known_rates(communicator: Communicator, dtype: str) -> Rates | None:
    """What was measured before, without measuring."""
    return _measured.get(communicator, {}).get(dtype)


def forget(communicator: Communicator) -> None:
    """The link has changed: all ranks measure again at their next call."""
    _measured.pop(communicator, None)


def rates(communicator: Communicator, dtype: np.dtype) -> Rates:
    """Measured at a group's first call in a dtype, which all its ranks make together."""
    found = _measured.setdefault(communicator, {})
    if dtype.name not in found:
        own = np.array([*_product_seconds(dtype), *_transfer_seconds(communicator)])
        found[dtype.name] = Rates(*map(float, communicator.all_reduce(own, "max")))
    return found[dtype.name]


def _product_seconds(dtype: np.dtype) -> tuple[float, float]:
    few, many = 16, 256
    operand = PackedOperand(np.full((PRODUCT_SIDE, PRODUCT_SIDE), 0.5, np.float32), dtype)
    x, out = np.full((many, PRODUCT_SIDE), 0.5, dtype), np.empty((many, PRODUCT_SIDE), dtype)
    # The fastest: whatever else the machine did is no part of the product. A link's median: bursts make it look fast.
    seconds = [min(_seconds(partial(operand.multiply, x[:rows], out[:rows]))) for rows in (few, many)]
    per_row = max(seconds[1] - seconds[0], 0.0) / (many - few)
    per_weight = max(seconds[0] - few * per_row, 0.0)
    return per_weight / PRODUCT_SIDE**2, per_row / PRODUCT_SIDE**2


def _transfer_seconds(communicator: Communicator) -> tuple[float, float, float]:
    def exchange(num_bytes: int) -> Callable[[], object]:
        sent = [np.zeros(num_bytes, np.uint8)] * communicator.world_size
        received = [np.empty(num_bytes, np.uint8) for _ in sent]
        return lambda: communicator.all_to_all(sent, out=received)

    communicator.barrier()
    latency = float(np.median(_seconds(exchange(64))))
    began, busy = time.perf_counter(), time.process_time()
    whole = float(np.median(_seconds(exchange(LINK_BYTES))))
    busy = (time.process_time() - busy) / (time.perf_counter() - began)
    return latency, max(whole - latency, 0.0) / LINK_BYTES, min(busy, 1.0)


def _seconds(run: Callable[[], object], times: int = 5) -> list[float]:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def gather(
    found: Rates, rows: int, shape: Sequence[int], itemsize: int, world_size: int, num_products: int = 1
) -> Choice:
    """An all-gather of `rows` of each rank, then the product of all. num_products: 2 where the weight's gradient, of as
    many FLOPs, is computed beside the collective too."""
    return _sharded(found, rows, shape, shape[0] * itemsize, world_size, num_products, shrinking_parts)


def scatter(
    found: Rates, rows: int, shape: Sequence[int], itemsize: int, world_size: int, num_products: int = 1
) -> Choice:
    """The product of all rows, of which each rank keeps `rows`: the mirror image."""
    return _sharded(found, rows, shape, shape[1] * itemsize, world_size, num_products, growing_parts)


def _sharded(
    found: Rates,
    rows: int,
    shape: Sequence[int],
    row_bytes: int,
    world_size: int,
    num_products: int,
    parts_of: Callable[[int, int, float], list[slice]],
) -> Choice:
    """The part that nothing hides is one of the S of `num_chunks`; the others grow by as much as a row takes longer on
    the link than in the product, so that the link never waits for a part, nor the product for the link."""
    weight_elements, peers = shape[0] * shape[1], world_size - 1
    product, transfer = found.product(world_size * rows, weight_elements), found.transfer(rows * row_bytes)
    c = transfer / (num_products * product)
    exposed = rows // num_chunks(c, world_size, most_chunks(rows, row_bytes))
    growth = min(max(transfer / product * world_size / peers, 1.0), MAX_GROWTH) if peers else 1.0
    parts = parts_of(rows, exposed, growth)
    whole = found.product(rows, weight_elements) + (num_products - 1) * product
    in_parts = sum(found.product(part.stop - part.start, weight_elements) + CHUNK_SECONDS for part in parts)
    computed = whole + peers * in_parts
    hidden = peers * len(parts) * found.latency + transfer
    overlapped = max(computed + found.busy * transfer, hidden + found.product(exposed, weight_elements))
    return Choice(parts, overlapped, num_products * product + transfer)


def reduce_all(found: Rates, rows: int, shape: Sequence[int], itemsize: int, world_size: int) -> Choice:
    """The product, then the sum of all of it on all ranks: a block to every peer, and a reduced block to every peer.

    Each part is computed while the one before, 1 / c times as large, is on its way; nothing hides the last. The parts
    shrink more slowly than the measured c asks, and by 0.7 at most: one that is late delays all that follow, while one
    more costs little.
    """
    row_bytes, weight_elements = shape[1] * itemsize, shape[0] * shape[1]
    product = found.product(rows, weight_elements)
    transfer = 2 * found.transfer(rows * row_bytes / world_size)
    shrink = min(max(1.25 * transfer / product, 0.7), 0.95)
    parts = shrinking_parts(rows, least_rows(row_bytes), 1 / shrink)
    last = rows and parts[-1].stop - parts[-1].start
    computed = sum(found.product(part.stop - part.start, weight_elements) + CHUNK_SECONDS for part in parts)
    exposed = 2 * found.transfer(last * row_bytes / world_size)
    first = found.product(rows - last, weight_elements) if len(parts) == 1 else 0.0
    overlapped = max(computed + found.busy * transfer, first + transfer) + exposed
    return Choice(parts, overlapped, product + transfer)
