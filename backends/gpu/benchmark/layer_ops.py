"""The ops that a decoder layer is built of: fusionkit's, plain PyTorch's (to be compiled), Liger-Kernel's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fusionkit_backends.gpu.benchmark.decoder_layer import Ops


def ours() -> Ops:
    """The backend's functions on PyTorch tensors, without the core's dispatch."""
    from fusionkit_backends.gpu.autograd import flash_attention, fused_linear_cross_entropy, fusion_rope
    from fusionkit_backends.gpu.autograd.fusion_add_rms_norm import fusion_add_rms_norm
    from fusionkit_backends.gpu.autograd.fusion_rms_norm import fusion_rms_norm
    from fusionkit_backends.gpu.autograd.swiglu import swiglu

    def attention(q: Any, k: Any, v: Any) -> Any:
        if q.is_cuda and q.element_size() == 2:
            return flash_attention.frameworks_own(q, k, v, causal=True)
        return flash_attention.own(q, k, v, causal=True)[0]

    return Ops(
        "fusionkit",
        fusion_rms_norm,
        fusion_add_rms_norm,
        fusion_rope.fusion_rope,
        attention,
        swiglu,
        lambda x, weight, labels: fused_linear_cross_entropy.fused_linear_cross_entropy(x, weight, labels)[0],
    )


def plain() -> Ops:
    """Compositions of PyTorch's own functions."""

    def rms_norm(x: Any, weight: Any) -> Any:
        return F.rms_norm(x, weight.shape, weight, 1e-5)

    def add_rms_norm(x: Any, residual: Any, weight: Any) -> Any:
        total = x + residual
        return rms_norm(total, weight), total

    def rope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        wide = [torch.cat([table, table], -1)[:, None].to(q.dtype) for table in (cos, sin)]

        def rotated(x: Any) -> Any:
            first, second = x.chunk(2, -1)
            return x * wide[0] + torch.cat([-second, first], -1) * wide[1]

        return rotated(q), rotated(k)

    def attention(q: Any, k: Any, v: Any) -> Any:
        heads_first = [x.transpose(1, 2) for x in (q, k, v)]
        return F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)

    def cross_entropy(x: Any, weight: Any, labels: Any) -> Any:
        return F.cross_entropy((x @ weight).float(), labels, reduction="sum")

    return Ops("PyTorch", rms_norm, add_rms_norm, rope, attention, lambda gate, up: F.silu(gate) * up, cross_entropy)


def liger() -> Ops:
    """Liger-Kernel's functions where it has them; attention is PyTorch's, as in its own models."""
    import liger_kernel  # noqa: F401  # missing: said before anything is built
    from fusionkit_backends.gpu.benchmark import liger_peers as peers

    def rope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        return tuple(x.transpose(1, 2) for x in peers.fusion_rope(q, k, cos, sin)())

    return Ops(
        "Liger-Kernel",
        lambda x, weight: peers.fusion_rms_norm(x, weight)(),
        lambda x, residual, weight: peers.fusion_add_rms_norm(x, residual, weight)(),
        rope,
        plain().attention,
        lambda gate, up: peers.swiglu(gate, up)(),
        lambda x, weight, labels: peers.fused_linear_cross_entropy(x, weight, labels)(),
    )
