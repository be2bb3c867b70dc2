"""CRC-32 of a file whose bytes several processes have parts of.

Without its first and last inversion the CRC is linear: a file's is the exclusive or of its parts' with zeros around
them. Zeros before a part change nothing, and n bytes of zeros behind it multiply by x^(8 n). So every process has one
number a file, whatever its parts are.

    crc32(file) = sum over parts of part * x^(8 n) + (1 + x^(8 length)) * inversion, modulo the polynomial of zlib

Source: crc32_combine of zlib 1.2.13, crc32.c.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any

POLYNOMIAL = 0xEDB88320  # zlib's, bits reversed: x^0 is the highest
INVERSION = 0xFFFFFFFF


def of_part(content: Any, behind: int = 0) -> int:
    """What these bytes, with so many of the file behind them, add to a file's sum."""
    return moved(zlib.crc32(content, INVERSION) ^ INVERSION, behind)


def of_file(total: int, length: int) -> int:
    """The CRC-32, as zlib has it, of a file of that length: total is the exclusive or over its parts."""
    return total ^ moved(INVERSION, length) ^ INVERSION


def moved(part: int, behind: int) -> int:
    return _product(_power(behind), part) if behind else part


def _product(a: int, b: int) -> int:
    found = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            found ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return found


@lru_cache(maxsize=4096)
def _power(num_bytes: int) -> int:
    """x^(8 num_bytes)."""
    found, square = 1 << 31, 1 << 23  # x^0 and x^8
    while num_bytes:
        if num_bytes & 1:
            found = _product(square, found)
        square, num_bytes = _product(square, square), num_bytes >> 1
    return found


@lru_cache(maxsize=64)
def tables(num_bytes: int) -> tuple[tuple[int, ...], ...]:
    """Of `moved` by a fixed number of bytes: the exclusive or of one entry for each byte of the part, lowest first."""
    return tuple(tuple(moved(byte << shift, num_bytes) for byte in range(256)) for shift in (0, 8, 16, 24))
