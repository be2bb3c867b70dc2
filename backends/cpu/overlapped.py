"""Products whose operands arrive, or whose results leave, while they are computed.

Shards move in chunks through the communicator's thread; the product of one chunk runs while the next is on its way.
The weight is packed once. The sums over ranks are taken by the owner of the rows, once, in the order of ranks: results
depend neither on what arrives first nor on the number of chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fusionkit_backends.cpu.overlap import span
from fusionkit_backends.cpu.packed_operand import PackedOperand

from fusionkit.parallel import Communicator, Work, sum_in_order
from fusionkit.spec import Array


def rows_of(rank: int, rows: int) -> slice:
    return slice(rank * rows, (rank + 1) * rows)


def gather_then_multiply(
    x: Array, operand: PackedOperand, communicator: Communicator, gathered: Array, y: Array
) -> None:
    """As gather_and_multiply, the whole gather first."""
    gather(x, communicator, gathered)
    operand.multiply(gathered, y)


def gather(x: Array, communicator: Communicator, gathered: Array) -> None:
    with span("wait", "all_gather"):
        communicator.all_gather(x, out=gathered.reshape(communicator.world_size, *x.shape))


def start_gather(
    x: Array, communicator: Communicator, parts: list[slice], gathered: Array
) -> list[tuple[int, slice, Work]]:
    """Begin to send x to all and to fill the others' rows of `gathered`: (owner, rows, work) in the order of arrival.

    In step d each rank sends to the rank d before it and hears the rank d behind it, one step after the other, so that
    whole shards arrive early instead of all shards late.
    """
    started = []
    for step in range(1, communicator.world_size):
        source = (communicator.rank + step) % communicator.world_size
        target = (communicator.rank - step) % communicator.world_size
        for part in parts:
            arriving = slice(source * len(x) + part.start, source * len(x) + part.stop)
            work = _exchange(communicator, x[part], target, gathered[arriving], source)
            started.append((source, arriving, work))
    return started


def _exchange(communicator: Communicator, sent: Array, target: int, received: Array, source: int) -> Work:
    world = range(communicator.world_size)
    sends = [sent if rank == target else sent[:0] for rank in world]
    receives = [received if rank == source else received[:0] for rank in world]
    work: Work = communicator.all_to_all(sends, out=receives, sync_op=False, in_turn=True)
    return work


def gather_and_multiply(
    x: Array,
    operand: PackedOperand,
    communicator: Communicator,
    parts: list[slice],
    gathered: Array,
    y: Array,
    then: Callable[[slice], None] | None = None,
) -> None:
    """gathered = all ranks' x, y = gathered @ weight. `then(rows)` runs as soon as a rank's rows are there."""
    own = rows_of(communicator.rank, len(x))
    arriving = start_gather(x, communicator, parts, gathered)
    operand.multiply(x, y[own], "own rows")
    gathered[own] = x
    if then is not None:
        then(own)
    for source, rows, work in arriving:
        await_work(work)
        operand.multiply(gathered[rows], y[rows], f"rows of rank {source}")
        if then is not None and rows.stop == (source + 1) * len(x):
            then(rows_of(source, len(x)))


def multiply_and_scatter(
    x: Array,
    operand: PackedOperand,
    communicator: Communicator,
    parts: list[slice],
    y: Array,
    meanwhile: Callable[[], None] | None = None,
    plus: Array | None = None,
) -> None:
    """y = this rank's rows of the sum over ranks of x @ weight (+ plus). The others' rows are computed first.

    `meanwhile` runs when this rank has sent all that it will send.
    """
    rank, world_size = communicator.rank, communicator.world_size
    leaving = np.empty((world_size, *y.shape), y.dtype)  # [rank]: own; the others' rows until they are sent
    arrived = np.empty_like(leaving)
    works: list[list[Work]] = [[] for _ in parts]

    def multiply(owner: int, part: slice) -> Array:
        rows, out = slice(owner * len(y) + part.start, owner * len(y) + part.stop), leaving[owner, part]
        operand.multiply(x[rows], out, "own rows" if owner == rank else f"rows of rank {owner}")
        return out if plus is None else sum_in_order([out, plus[rows]], out)

    for step in range(1, world_size):
        owner, source = (rank + step) % world_size, (rank - step) % world_size
        for part, pending in zip(parts, works, strict=True):
            sent = multiply(owner, part)
            pending.append(_exchange(communicator, sent, owner, arrived[source, part], source))
    multiply(rank, slice(0, len(y)))
    if meanwhile is not None:
        meanwhile()
    for part, pending in zip(parts, works, strict=True):
        for work in pending:
            await_work(work)
        with span("compute", "sum"):
            sum_in_order([(leaving if each == rank else arrived)[each, part] for each in range(world_size)], y[part])


def multiply_then_scatter(
    x: Array, operand: PackedOperand, communicator: Communicator, y: Array, plus: Array | None = None
) -> None:
    """As multiply_and_scatter, the whole product first."""
    product = np.empty((len(x), y.shape[1]), y.dtype)
    operand.multiply(x, product)
    if plus is not None:
        sum_in_order([product, plus], product)
    with span("wait", "reduce_scatter"):
        communicator.reduce_scatter(product.reshape(communicator.world_size, *y.shape), out=y)


def start_multiply_and_reduce(
    x: Array, operand: PackedOperand, communicator: Communicator, parts: list[slice], y: Array
) -> list[Work]:
    """y = the sum over ranks of x @ weight once the works are done: a part is on its way while the next is computed."""
    works = []
    for part in parts:
        operand.multiply(x[part], y[part])
        works.append(communicator.all_reduce(y[part], out=y[part], sync_op=False))
    return works


def await_work(work: Any) -> None:
    with span("wait", "wait"):
        work.wait()
