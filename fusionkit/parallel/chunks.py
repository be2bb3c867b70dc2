"""Into how many chunks a collective op is cut, and where. The same on every rank: sizes and c alone decide.

t: world_size; S: chunks of one rank's shard; c = Tc / Tg, the collective's time over the product's.
"""

from __future__ import annotations

import math

MIN_ROWS = 64  # a product of fewer rows runs below the library's rate
MIN_BYTES = 256 << 10  # a message much smaller than this costs its handling rather than its bytes
MARGIN = 2.0  # c may be so much larger than it was measured: on a machine that was busy then
ALIGNMENT = 16  # rows; a chunk that ends elsewhere splits a block of the product


def most_chunks(rows: int, row_bytes: int) -> int:
    """Chunks of one rank's rows that have at least MIN_ROWS and MIN_BYTES; at least 1."""
    return max(1, min(rows // MIN_ROWS, rows * row_bytes // MIN_BYTES))


def num_chunks(c: float, world_size: int, most: int) -> int:
    """S: the smallest with 1/(tS) <= max(min(0.05 c, 1 - c), 1 - 2 c), and at most `most`, also where c >= 1.

    One chunk has nothing to hide under. While it is short of 1 - c of the product, the collective ends before the
    product does and nothing shows, a c of twice what was measured included. Else, while it is 5% of the collective, 95%
    can be hidden. Fewer chunks are better: each is a product of its own, and a message.
    """
    share = max(min(0.05 * c, 1 - c), 1 - MARGIN * c)
    return most if share <= 0 else min(most, math.ceil(1 / (world_size * share)))


def growing_parts(rows: int, first: int, growth: float) -> list[slice]:
    """`rows` in parts of which each is `growth` times as large as the one before, and the first has at least `first`.

    For rows that leave as they are computed: while a part is on its way the next is computed, and may be larger by as
    much as the link is slower than the product. Nothing hides the first, which has not left yet.
    """
    sizes = [1.0]  # relative
    while first * (sum(sizes) + growth * sizes[-1]) <= rows:
        sizes.append(growth * sizes[-1])
    ends, done = [], 0.0
    for size in sizes[:-1]:
        done += size * rows / sum(sizes)
        ends.append(-(int(-done) // ALIGNMENT) * ALIGNMENT)
    return [slice(begin, end) for begin, end in zip([0, *ends], [*ends, rows], strict=True) if end > begin]


def shrinking_parts(rows: int, last: int, growth: float) -> list[slice]:
    """The mirror image, for rows that are computed as they arrive: nothing hides the product of the last."""
    return [slice(rows - part.stop, rows - part.start) for part in reversed(growing_parts(rows, last, growth))]


def least_rows(row_bytes: int) -> int:
    """The smallest part that is worth a product and a message of its own."""
    return max(MIN_ROWS, math.ceil(MIN_BYTES / max(row_bytes, 1)))
