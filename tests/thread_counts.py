"""How many threads a parity case runs on: a kernel shares its rows, columns or heads out by their number."""

from __future__ import annotations

import zlib


def of_case(*labels):
    """1, 2 or 3: the same in every run and on every machine, mixed over ops, dtypes and routes."""
    return 1 + zlib.crc32("-".join(labels).encode()) % 3
