"""Predicates that many backends declare."""

from __future__ import annotations

from fusionkit.capability import AllOf, Not, OneOf, Present
from fusionkit.dtypes import SIXTEEN_BITS

# x has 16 bits and weight is its float32 master copy.
MASTER_WEIGHT = AllOf((OneOf("x.dtype", SIXTEEN_BITS), OneOf("weight.dtype", ("float32",))))

UNTRACED_GROUP = Not(AllOf((OneOf("traced", (True,)), Present("group"))), "a traced program holds no call of a group")
