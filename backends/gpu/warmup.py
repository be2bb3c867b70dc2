"""Compiles the Triton kernels of a step before it, so that none is compiled on the hot path.

    from fusionkit_backends.gpu.warmup import llama_calls, warmup

    llama = dict(hidden_size=5120, intermediate_size=13824, num_attention_heads=40, head_dim=128, vocab_size=32000)
    warmup(llama_calls(**llama))

Triton compiles one program for each kind of arguments: dtypes, which addresses and sizes are multiples of 16, the
constants that tables choose by size. Numbers of tokens are not among them, so that one warmup serves every length,
but for an attn_mask: its row stride is kv_len, and multiples of 16 are a program apart. Plain attention, which the
framework runs on a card, is not warmed up: cuDNN builds a plan for each length, at the first call with it.
What Triton compiles is kept on disk (TRITON_CACHE_DIR) for the next process.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fusionkit_backends.gpu.kernels.launch import Launch, recording
from triton import knobs

from fusionkit.spec import TensorSpec

Call = tuple[str, Mapping[str, Any]]  # an op's name and its arguments, with a TensorSpec for each tensor


@dataclass(frozen=True)
class Compiled:
    """What `warmup` did: programs that were compiled or read from Triton's cache on disk, and the time it took."""

    num_programs: int
    elapsed_s: float


def warmup(calls: Iterable[Call], *, training: bool = True) -> Compiled:
    """Compile for the current card what these calls, and with training their gradients, would launch."""
    started = time.perf_counter()
    with compilations() as compiled:
        for each in launches(calls, training=training):
            each.kernel.warmup(*each.arguments, grid=(1,), **each.constants)
    return Compiled(len(compiled), time.perf_counter() - started)


def launches(calls: Iterable[Call], *, training: bool = True) -> list[Launch]:
    """The launches behind the calls, recorded on tensors without memory."""
    with recording() as made:
        for op, arguments in calls:
            function = getattr(importlib.import_module(f"fusionkit_backends.gpu.autograd.{op}"), op)
            outputs = function(**{name: _without_memory(value, training) for name, value in arguments.items()})
            if training:
                through = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.requires_grad]
                torch.autograd.backward(through, [torch.empty_like(output) for output in through])
    return made


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the kernels that Triton compiles inside: empty on a hot path that was warmed up."""
    compiled: list[str] = []
    before = knobs.runtime.jit_post_compile_hook

    def note(**details: Any) -> Any:
        compiled.append(details["fn"].name)
        return before(**details) if before else None

    knobs.runtime.jit_post_compile_hook = note
    try:
        yield compiled
    finally:
        knobs.runtime.jit_post_compile_hook = before


def llama_calls(
    *,
    hidden_size: int,
    intermediate_size: int,
    num_attention_heads: int,
    head_dim: int,
    vocab_size: int,
    num_key_value_heads: int | None = None,
    dtype: str = "bfloat16",
    weight_dtype: str | None = None,
    positions: bool = False,
    packed: bool = False,
) -> list[Call]:
    """The calls of a Llama's training step.

    Args:
        weight_dtype: "float32" for master weights; None: as the activations.
        positions: fusion_rope gets position_ids.
        packed: flash_attention gets startend_row_indices beside causal: packed documents.
    """
    tokens, weights = 2048, weight_dtype or dtype
    hidden = TensorSpec((1, tokens, hidden_size), dtype)
    weight = TensorSpec((hidden_size,), weights)
    inner = TensorSpec((1, tokens, intermediate_size), dtype)
    heads = TensorSpec((1, tokens, num_attention_heads, head_dim), dtype)
    kv_heads = TensorSpec((1, tokens, num_key_value_heads or num_attention_heads, head_dim), dtype)
    table = TensorSpec((2**17, head_dim // 2), "float32")
    position_ids = {"position_ids": TensorSpec((1, tokens), "int64")} if positions else {}
    bounds = {"startend_row_indices": TensorSpec((1, 1, tokens, 1), "int32")} if packed else {}
    return [
        ("flash_attention", {"q": heads, "k": kv_heads, "v": kv_heads, "causal": True, **bounds}),
        ("fusion_rms_norm", {"x": hidden, "weight": weight}),
        ("fusion_add_rms_norm", {"x": hidden, "residual": hidden, "weight": weight}),
        ("fusion_rope", {"q": heads, "k": kv_heads, "cos": table, "sin": table, **position_ids}),
        ("swiglu", {"gate": inner, "up": inner}),
        (
            "fused_linear_cross_entropy",
            {
                "x": hidden,
                "weight": TensorSpec((hidden_size, vocab_size), weights),
                "labels": TensorSpec((1, tokens), "int64"),
            },
        ),
    ]


def _without_memory(value: Any, training: bool) -> Any:
    if not isinstance(value, TensorSpec):
        return value
    dtype = getattr(torch, value.dtype)
    return torch.empty(value.shape, dtype=dtype, device="meta", requires_grad=training and dtype.is_floating_point)
