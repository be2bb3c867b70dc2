"""Liger-Kernel's functions, called as its own modules do. Not run: the package is not in the test environment."""

from __future__ import annotations

from typing import Any

import torch


def fusion_rms_norm(x: Any, weight: Any) -> Any:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return lambda: LigerRMSNormFunction.apply(x, weight, 1e-5, 0.0, "llama", False)


def fusion_add_rms_norm(x: Any, residual: Any, weight: Any) -> Any:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return lambda: LigerFusedAddRMSNormFunction.apply(x, residual, weight, 1e-5, 0.0, "llama", False)


def fusion_rope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """It wants heads first and tables of full width, and rotates q and k where they are."""
    from liger_kernel.ops.rope import LigerRopeFunction

    cos, sin = (torch.cat([table, table], -1)[None].to(q.dtype) for table in (cos, sin))
    return lambda: LigerRopeFunction.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin)[:2]


def swiglu(gate: Any, up: Any) -> Any:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return lambda: LigerSiLUMulFunction.apply(gate, up)


def fused_linear_cross_entropy(x: Any, weight: Any, labels: Any, ignore_index: int = -100) -> Any:
    """Its weight is [vocab, hidden]: the transposed view of ours. Right only for a gradient of 1 of the loss: another
    would be multiplied in as if the view were dense."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def call() -> Any:
        loss = LigerFusedLinearCrossEntropyFunction.apply(
            x, weight.t(), labels, None, None, ignore_index, 0.0, 0.0, "sum"
        )
        return loss[0] if isinstance(loss, tuple) else loss

    return call
