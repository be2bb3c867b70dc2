"""Block sizes of the attention kernels: what fits the card's shared memory. Not tuned on a card; bench_gpu.py --only
tiles measures the neighbours of each entry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fusionkit_backends.gpu.kernels.card import card
from fusionkit_backends.gpu.kernels.launch import INTERPRETED

Pass = Literal["forward", "dq", "dk_dv"]


@dataclass(frozen=True)
class Tiles:
    """BLOCK_M queries against BLOCK_N keys, by so many warps, with so many stages of loads in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


SMALL = Tiles(16, 16, 1, 1)  # interpreted: so that short sequences have several blocks

# (pass, largest head_dim) -> tiles for 16 bits: on sm_80 with 163 KB of shared memory a block, on sm_90 with 227 KB.
SIXTEEN_BITS: dict[int, dict[tuple[Pass, int], Tiles]] = {
    80: {
        ("forward", 64): Tiles(128, 64, 4, 3),
        ("forward", 128): Tiles(128, 64, 8, 2),
        ("forward", 256): Tiles(64, 32, 8, 2),
        ("dq", 64): Tiles(128, 64, 8, 2),
        ("dq", 128): Tiles(64, 64, 8, 2),
        ("dq", 256): Tiles(64, 32, 8, 1),
        ("dk_dv", 64): Tiles(32, 128, 8, 2),
        ("dk_dv", 128): Tiles(32, 64, 8, 2),
        ("dk_dv", 256): Tiles(32, 32, 8, 1),
    },
    90: {
        ("forward", 64): Tiles(128, 128, 8, 3),
        ("forward", 128): Tiles(128, 128, 8, 2),
        ("forward", 256): Tiles(128, 64, 8, 2),
        ("dq", 64): Tiles(128, 64, 8, 2),
        ("dq", 128): Tiles(128, 64, 8, 2),
        ("dq", 256): Tiles(64, 32, 8, 2),
        ("dk_dv", 64): Tiles(64, 128, 8, 2),
        ("dk_dv", 128): Tiles(32, 128, 8, 2),
        ("dk_dv", 256): Tiles(32, 32, 8, 2),
    },
}

# Beside a mask that is a tensor, a block of which takes registers and shared memory too; for every card.
MASKED: dict[tuple[Pass, int], Tiles] = {
    ("forward", 64): Tiles(64, 32, 8, 1),
    ("forward", 128): Tiles(64, 32, 8, 1),
    ("forward", 256): Tiles(32, 32, 4, 1),
    ("dq", 64): Tiles(64, 32, 8, 1),
    ("dq", 128): Tiles(32, 32, 8, 1),
    ("dq", 256): Tiles(32, 16, 8, 1),
    ("dk_dv", 64): Tiles(32, 64, 8, 1),
    ("dk_dv", 128): Tiles(32, 32, 8, 1),
    ("dk_dv", 256): Tiles(32, 16, 4, 1),
}

# float32 is multiplied without tensor cores: TF32's 10 bits would not keep the op's promise.
FLOAT32: dict[tuple[Pass, int], Tiles] = {
    ("forward", 64): Tiles(64, 32, 8, 2),
    ("forward", 128): Tiles(32, 32, 8, 1),
    ("forward", 256): Tiles(16, 32, 8, 1),
    ("dq", 64): Tiles(32, 32, 8, 1),
    ("dq", 128): Tiles(16, 32, 8, 1),
    ("dq", 256): Tiles(16, 16, 8, 1),
    ("dk_dv", 64): Tiles(32, 32, 8, 1),
    ("dk_dv", 128): Tiles(16, 32, 8, 1),
    ("dk_dv", 256): Tiles(16, 16, 8, 1),
}


# Of launches that mend what is not finite: with the tables' own tiles they would spill.
CAREFUL_FLOAT32 = Tiles(16, 16, 8, 1)  # up to head_dim 128
CAREFUL_SIXTEEN_BITS: dict[tuple[Pass, int], Tiles] = MASKED | {
    ("forward", 256): Tiles(32, 32, 8, 1),
    ("dk_dv", 64): Tiles(16, 64, 8, 1),
    ("dk_dv", 256): Tiles(32, 16, 8, 1),
}


def choose_careful(direction: Pass, head_dim: int, itemsize: int) -> Tiles:
    """As `choose`, for a launch that mends."""
    if INTERPRETED:
        return SMALL
    return CAREFUL_FLOAT32 if itemsize == 4 else CAREFUL_SIXTEEN_BITS[direction, _size(head_dim)]


def choose(direction: Pass, head_dim: int, itemsize: int, masked: bool) -> Tiles:
    """For the current card; one newer than the table takes its last column. itemsize: of q's dtype."""
    if INTERPRETED:
        return SMALL
    size = _size(head_dim)
    if itemsize == 4:
        return FLOAT32[direction, size]
    if masked:
        return MASKED[direction, size]
    tiles = SIXTEEN_BITS[90 if card().capability >= 90 else 80][direction, size]
    if head_dim == size:
        return tiles
    return replace(tiles, block_n=tiles.block_n // 2)  # the conditions of a head_dim that is padded take registers


def _size(head_dim: int) -> int:
    """The row of the tables."""
    return next(limit for limit in (64, 128, 256) if head_dim <= limit)
