"""Into how many chunks a collective op is cut, and where. The same on every rank: sizes and group decide alone."""

from __future__ import annotations

import math

MIN_ROWS = 64  # a product of fewer rows runs below the library's rate, and below 16 by another code path
MIN_BYTES = 256 << 10  # a message much smaller than this costs its handling rather than its bytes
SMALLEST_SHARE = 0.02  # of a product; where communication takes longer than it, smaller chunks gain little
ALIGNMENT = 16  # rows; a chunk that ends elsewhere splits a block of the product


def wanted_share(ratio: float) -> float:
    """The largest part of the product that may be exposed at its end, c being the collective's time over it.

    A chunk that is one such part leaves 95% of the collective hidden, and keeps the product above its time.
    """
    return min(0.05 * ratio, max(1.0 - ratio, SMALLEST_SHARE))


def num_chunks(rows: int, row_bytes: int, world_size: int, ratio: float) -> int:
    """The chunks of one rank's shard: the smallest number S with 1 / (world_size * S) <= wanted_share(c), as far as
    chunks keep their least size; at least 1.

    Args:
        rows: of the shard.
        row_bytes: what one row sends.
        ratio: c, the collective's time over the product's.
    """
    largest = max(1, min(rows // MIN_ROWS, rows * row_bytes // MIN_BYTES))
    share = wanted_share(ratio)
    needed = math.ceil(1 / (world_size * share))
    return int(max(1, min(largest, needed)))


def equal_parts(rows: int, count: int) -> list[slice]:
    """`rows` in `count` parts that end at multiples of ALIGNMENT; of at least rows / count, rounded down to one."""
    ends = [rows * (index + 1) // count // ALIGNMENT * ALIGNMENT for index in range(count - 1)]
    return [slice(begin, end) for begin, end in zip([0, *ends], [*ends, rows], strict=True) if end > begin]


def shrinking_parts(rows: int, row_bytes: int, ratio: float) -> list[slice]:
    """`rows` in parts each of which is computed while the part before it, 1 / c times as large, is on its way.

    What cannot hide is the collective of the last one, so that one has the least size.
    """
    least = max(MIN_ROWS, -(-MIN_BYTES // max(row_bytes, 1)))
    # More than c, which is measured: a part that is still on its way when the next is done delays all that follow.
    # From 0.95 on, the parts would never end.
    shrink = min(max(1.25 * ratio, 0.5), 0.95)
    sizes = [min(least, rows)]  # from the last to the first
    while sum(sizes) < rows:
        larger = -(-int(sizes[-1] / shrink) // ALIGNMENT) * ALIGNMENT
        rest = rows - sum(sizes)
        if rest < least:
            sizes[-1] += rest
        else:
            sizes.append(larger if rest >= larger + larger / shrink else rest)
    parts, begin = [], 0
    for size in reversed(sizes):
        parts.append(slice(begin, begin + size))
        begin += size
    return parts if rows else []
