"""The ops that memory bounds, beside the card's own copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from fusionkit_backends.gpu.benchmark import liger_peers
from fusionkit_backends.gpu.benchmark.clock import measure
from fusionkit_backends.gpu.benchmark.contestants import Call, compiled, copy_of, directions
from fusionkit_backends.gpu.benchmark.rows import Row, rated
from fusionkit_backends.gpu.benchmark.setting import Setting
from fusionkit_bench.torch_peers import PEERS

from fusionkit.ops import load_spec

PIECE, OURS, COPY = "memory", "fusionkit", "copy rate"
OPS = ("fusion_rms_norm", "fusion_add_rms_norm", "fusion_rope", "swiglu")


def run(setting: Setting) -> Iterator[Row]:
    for op in OPS:
        for length in setting.lengths:
            yield from of_call(setting, op, length)


def of_call(setting: Setting, op: str, length: int) -> Iterator[Row]:
    tensors, dims = ARGUMENTS[op](setting, length)
    calls, grads = contestants(setting, op, tensors)
    for direction, called in directions(calls, grads).items():
        cost = load_spec(op).cost(dims, setting.dtype.itemsize, direction != "forward")
        num_bytes = cost.bytes_read + cost.bytes_written
        outcomes = measure({**called, COPY: copy_of(num_bytes, setting.device)}, setting.num_rounds)
        yield from rated(PIECE, f"{op} S{length}", direction, outcomes, COPY, num_bytes, num_bytes)


def contestants(
    setting: Setting, op: str, tensors: dict[str, Any]
) -> tuple[dict[str, tuple[Call, list[Any]]], list[Any]]:
    wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
    function = kernel(op)
    eager = next(iter(PEERS[op](**tensors).values()))[0]
    calls: dict[str, tuple[Call, list[Any]]] = {OURS: (lambda: function(**tensors), wanted), "eager": (eager, wanted)}
    calls |= {name: (call, wanted) for name, call in compiled(setting, eager).items()}
    if (liger := liger_call(op, tensors)) is not None:
        calls["Liger-Kernel"] = liger, wanted
    outputs = function(**tensors)
    grads = [torch.randn_like(o) for o in (outputs if isinstance(outputs, tuple) else (outputs,))]
    if op == "fusion_rope" and "Liger-Kernel" in calls:  # the gradients must have its layout
        call = calls["Liger-Kernel"][0]
        calls["Liger-Kernel"] = (lambda: tuple(x.transpose(1, 2) for x in call()), wanted)
    return calls, grads


def kernel(op: str) -> Callable[..., Any]:
    """The op's function on PyTorch tensors, without the core's dispatch."""
    import importlib

    return getattr(importlib.import_module(f"fusionkit_backends.gpu.autograd.{op}"), op)  # type: ignore[no-any-return]


def liger_call(op: str, tensors: dict[str, Any]) -> Call | None:
    try:
        return getattr(liger_peers, op)(**tensors)  # type: ignore[no-any-return]
    except ImportError:
        return None


def norm_arguments(setting: Setting, length: int) -> tuple[dict[str, Any], dict[str, int]]:
    x, weight = setting.randn(length, setting.hidden, grad=True), setting.randn(setting.hidden, grad=True)
    return {"x": x, "weight": weight}, {"...": length, "hidden_size": setting.hidden}


def add_norm_arguments(setting: Setting, length: int) -> tuple[dict[str, Any], dict[str, int]]:
    made, dims = norm_arguments(setting, length)
    return {
        "x": made["x"],
        "residual": setting.randn(length, setting.hidden, grad=True),
        "weight": made["weight"],
    }, dims


def rope_arguments(setting: Setting, length: int) -> tuple[dict[str, Any], dict[str, int]]:
    heads, head_dim = setting.heads, setting.head_dim
    q, k = (setting.randn(1, length, heads, head_dim, grad=True) for _ in range(2))
    angles = setting.randn(length, head_dim // 2, dtype=torch.float32)
    dims = {"batch_size": 1, "seq_len": length, "num_heads": heads, "num_key_value_heads": heads}
    dims |= {"head_dim": head_dim, "half_dim": head_dim // 2, "max_position": length}
    return {"q": q, "k": k, "cos": angles.cos(), "sin": angles.sin()}, dims


def swiglu_arguments(setting: Setting, length: int) -> tuple[dict[str, Any], dict[str, int]]:
    gate, up = (setting.randn(length, setting.intermediate, grad=True) for _ in range(2))
    return {"gate": gate, "up": up}, {"...": length, "intermediate_size": setting.intermediate}


ARGUMENTS = dict(zip(OPS, (norm_arguments, add_norm_arguments, rope_arguments, swiglu_arguments), strict=True))
