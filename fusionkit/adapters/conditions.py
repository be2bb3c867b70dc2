"""Predicates that many backends declare."""

from __future__ import annotations

from fusionkit.capability import AllOf, OneOf

SIXTEEN_BITS = ("bfloat16", "float16")

# x has 16 bits and weight is its float32 master copy.
MASTER_WEIGHT = AllOf((OneOf("x.dtype", SIXTEEN_BITS), OneOf("weight.dtype", ("float32",))))
