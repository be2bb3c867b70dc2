"""Backends of an invented device, for tests of the core that need no hardware and no plugin on disk."""

from __future__ import annotations

from fusionkit.backend import Backend, Kernel

REFERENCE = "tests.core.toy:fusion_rms_norm"


def fusion_rms_norm(x, weight, *, epsilon=1e-5):
    return "toy ran"


def backend(name="toy", device_types=("toy",), available=lambda: None, **kernel):
    functions = {"paddle": REFERENCE, "numpy": REFERENCE}
    kernels = {"fusion_rms_norm": Kernel(functions=functions, **kernel)}
    return Backend(name=name, device_types=device_types, kernels=kernels, proven_on="hardware", available=available)


def flash_attention(q, k, v, *, causal=False, attn_mask=None, startend_row_indices=None, scale=None, return_lse=False):
    return "toy ran"


def fused_linear(x, weight):
    return "toy ran"


def causal_attention(q, k, v, *, causal=False):
    return "toy ran"


def causal_attention_vjp(grad_outputs, q, k, v, *, causal=False):
    return {"q": q, "k": k, "v": v}


def plain_attention(q, k, v):
    return "toy ran"


def attention_without_keys(q, v, *, causal=False):
    return "toy ran"
