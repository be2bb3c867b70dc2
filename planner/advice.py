"""Where 95% hidden cannot be reached, and what would reach it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fusionkit_planner.llama import (
    ALL,
    COLUMN_LAYERS,
    DX_AND_DW,
    FORWARD,
    Row,
    sequence_parallel_rows,
    tensor_parallel_rows,
)
from fusionkit_planner.overlap import TARGET

from fusionkit.backend import DeviceModel

TRIED_WORLD_SIZES = (4, 2)


def advice(device: DeviceModel, dtype: str, tokens: int, world_size: int, rows: Sequence[Row]) -> Iterator[str]:
    """One sentence for each row whose bound is below 95%."""
    for row in rows:
        if row.times.bound >= TARGET:
            continue
        ways = (
            _filler(row, rows),
            _link(world_size, device, row),
            _fewer(device, dtype, tokens, world_size, row),
        )
        yield f"{row.layer}, {row.direction}, {row.op}: at most {row.times.bound:.0%}. " + " ".join(ways)


def _filler(row: Row, rows: Sequence[Row]) -> str:
    needed = row.times.filler_needed
    layer, spare = max(_spare(row, rows), key=lambda each: each[1])
    how = "With defer=True, " if row.op == ALL else ""
    text = f"{how}{needed * 1e6:.0f} us of another product beside it would do"
    if spare >= needed:  # a neighbour waits for this one's result
        text += f": {layer} has {spare * 1e6:.0f} us to spare, for other tokens (half of the batch)"
    return text + "."


def _spare(row: Row, rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """What neighbours in the same pass can lend. Without sequence parallelism those that have no all-reduce in this
    pass lend their whole product."""
    forward = row.direction == FORWARD
    for other in rows:
        if other.op == ALL or (other.direction == FORWARD) != forward or other.direction == DX_AND_DW:
            continue
        if other.layer == row.layer:
            continue
        if row.op != ALL:
            yield other.layer, other.times.spare
        elif (other.layer in COLUMN_LAYERS) == forward:
            yield other.layer, other.times.product


def _link(world_size: int, device: DeviceModel, row: Row) -> str:
    """Chunks do not depend on the link, so one factor brings the bound to the target."""
    if row.op == ALL and 1 - 1 / row.times.most_chunks < TARGET:
        return f"No link is fast enough: the last of {row.times.most_chunks} chunks has no product to hide under."
    steps = (1 if row.op == ALL else world_size) * row.times.most_chunks
    factor = TARGET * row.times.c / (1 - 1 / steps)
    return f"Or a link of {device.link_bandwidth * factor / 1e9:.0f} GB/s."


def _fewer(device: DeviceModel, dtype: str, tokens: int, world_size: int, row: Row) -> str:
    for fewer in TRIED_WORLD_SIZES:
        if fewer < world_size:
            same = _same_row(device, dtype, tokens, fewer, row)
            if same.times.bound >= TARGET:
                return f"Or tp {fewer}: {same.times.bound:.0%}."
    if device.link_topology == "mesh":
        return "A smaller tp leaves c as it is: each peer has a link of its own."
    return "No smaller tp reaches it."


def _same_row(device: DeviceModel, dtype: str, tokens: int, world_size: int, row: Row) -> Row:
    make = tensor_parallel_rows if row.op == ALL else sequence_parallel_rows
    found = {(r.layer, r.direction): r for r in make(device, dtype, tokens, world_size)}
    return found[row.layer, row.direction]


def together(rows: Sequence[Row]) -> Row:
    """All products of one direction as if each could hide any of its neighbours' collectives."""
    times = rows[0].times
    product, collective = (sum(getattr(row.times, part) for row in rows) for part in ("product", "collective"))
    return replace(rows[0], layer="all four", op="", times=replace(times, product=product, collective=collective))
