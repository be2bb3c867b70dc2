"""Into how many chunks a collective op is cut, and where. The same on every rank: sizes and c alone decide.

t: world_size; S: chunks of one rank's shard; c = Tc / Tg, the collective's time over the product's.
"""

from __future__ import annotations

import math

MIN_ROWS = 64  # a product of fewer rows runs below the library's rate
MIN_BYTES = 256 << 10  # a message much smaller than this costs its handling rather than its bytes
MARGIN = 1.2  # c may be so much larger than it was measured
ALIGNMENT = 16  # rows; a chunk that ends elsewhere splits a block of the product


def most_chunks(rows: int, row_bytes: int) -> int:
    """Chunks of one rank's rows that have at least MIN_ROWS and MIN_BYTES; at least 1."""
    return max(1, min(rows // MIN_ROWS, rows * row_bytes // MIN_BYTES))


def num_chunks(c: float, world_size: int, most: int) -> int:
    """S: the smallest with 1/(tS) <= max(min(0.05 c, 1 - c), 1 - 1.2 c), and at most `most`, also where c >= 1.

    One chunk has nothing to hide under. While it is short of 1 - c of the product, the collective ends before the
    product does and nothing shows, a c of 20% more than measured included. Else, while it is 5% of the collective, 95%
    can be hidden. Fewer chunks are better: each is a product of its own, and a message.
    """
    share = max(min(0.05 * c, 1 - c), 1 - MARGIN * c)
    return most if share <= 0 else min(most, math.ceil(1 / (world_size * share)))


def equal_parts(rows: int, count: int) -> list[slice]:
    """`rows` in `count` parts that end at multiples of ALIGNMENT; of at least rows / count, rounded down to one."""
    ends = [rows * (index + 1) // count // ALIGNMENT * ALIGNMENT for index in range(count - 1)]
    return [slice(begin, end) for begin, end in zip([0, *ends], [*ends, rows], strict=True) if end > begin]


def shrinking_parts(rows: int, row_bytes: int, c: float) -> list[slice]:
    """`rows` in parts each of which is computed while the part before it, 1 / c times as large, is on its way.

    What cannot hide is the collective of the last one, so that one has about the least size.
    """
    least = max(MIN_ROWS, -(-MIN_BYTES // max(row_bytes, 1)))
    # More than c, which is measured, and at least 0.7: a part that is still on its way when the next is done delays all
    # that follow, while a part more costs little. From 0.95 on, the parts would never end.
    shrink = min(max(1.25 * c, 0.7), 0.95)
    sizes = [1.0]  # relative, from the last part to the first
    while least * (sum(sizes) + sizes[-1] / shrink) <= rows:
        sizes.append(sizes[-1] / shrink)
    ends, done = [], 0.0
    for size in reversed(sizes[1:]):
        done += size * rows / sum(sizes)
        ends.append(int(done) // ALIGNMENT * ALIGNMENT)
    return [slice(begin, end) for begin, end in zip([0, *ends], [*ends, rows], strict=True) if end > begin]
