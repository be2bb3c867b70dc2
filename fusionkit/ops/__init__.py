"""One file per op: its spec. This list is the order of every table."""

from __future__ import annotations

import importlib
from functools import cache

from fusionkit.spec import OpSpec

LOCAL_OP_NAMES = (
    "fusion_rms_norm",
    "fusion_add_rms_norm",
    "fusion_rope",
    "flash_attention",
    "paged_attention",
    "swiglu",
    "fused_linear",
    "fused_linear_cross_entropy",
    "fused_adamw",
)
COLLECTIVE_OP_NAMES = ("all_gather_matmul", "matmul_reduce_scatter", "matmul_all_reduce")  # by a group of ranks
OP_NAMES = (*LOCAL_OP_NAMES, *COLLECTIVE_OP_NAMES)


@cache
def load_spec(name: str) -> OpSpec:
    spec: OpSpec = importlib.import_module(f"fusionkit.ops.{name}").spec
    return spec
