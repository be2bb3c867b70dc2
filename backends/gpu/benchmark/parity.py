"""What must hold before anything is timed: every case of the specs, and attention over many blocks, against float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from fusionkit_backends.gpu.autograd import flash_attention as attention
from fusionkit_backends.gpu.benchmark.attention import Shape, dense_mask, tensors
from fusionkit_backends.gpu.benchmark.memory_bound import OPS, kernel
from fusionkit_backends.gpu.benchmark.setting import Setting

from fusionkit import comparison, frameworks, parity
from fusionkit.dtypes import FLOATING
from fusionkit.ops import load_spec
from fusionkit.spec import Case, OpSpec

CHECKED = (*OPS, "fused_linear_cross_entropy", "flash_attention", "paged_attention")
Finding = dict[str, Any]  # op, case, dtype, and the worst error as a share of its bound, or what went wrong


def run(setting: Setting) -> Iterator[Finding]:
    for op in CHECKED:
        spec = load_spec(op)
        cases = [case for case in spec.cases if not (case.llama and setting.dry_run) and takes(spec, case)]
        for case in cases[:2] if setting.dry_run else cases:
            for dtype in FLOATING[:1] if setting.dry_run else FLOATING:
                yield found(op, case.name, dtype, lambda s=spec, c=case, d=dtype: spec_share(setting, s, c, d))
    for shape in many_blocks(setting):
        for dtype in (torch.float32,) if setting.dry_run else (torch.bfloat16, torch.float16, torch.float32):
            share = partial(large_share, setting, shape, dtype)
            yield found("flash_attention", shape.name, str(dtype).removeprefix("torch."), share)


def takes(spec: OpSpec, case: Case) -> bool:
    """Whether this backend's function has all of the case's arguments: the core would not call it with others."""
    return parity.arguments_of(spec, case, FLOATING[0]).keys() <= inspect.signature(function_of(spec)).parameters.keys()


def function_of(spec: OpSpec) -> Callable[..., Any]:
    return own_attention if spec.name == "flash_attention" else kernel(spec.name)


def found(op: str, case: str, dtype: str, share: Any) -> Finding:
    try:
        return {"op": op, "case": case, "dtype": dtype, "share": share()}
    except Exception as error:  # a benchmark goes on and names it; the exit code says that something is wrong
        return {"op": op, "case": case, "dtype": dtype, "error": f"{type(error).__name__}: {error}"[:300]}


def spec_share(setting: Setting, spec: OpSpec, case: Case, dtype: str) -> float:
    """The case as parity runs it, on this backend's function without the core's dispatch."""
    made = parity.arguments_of(spec, case, dtype)
    torch_arrays: Any = frameworks.load("torch")
    function = function_of(spec)
    arguments = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in made.items()}
    got = torch_arrays.carried(function, setting.device)(**arguments)
    written = {name: arguments[name] for name in spec.mutates if name in arguments}
    compared = comparison.compare_outputs(spec, made, got, written, dtype)
    if spec.reference_vjp is not None:
        grads = comparison.grad_outputs(spec, got)
        gradients = torch_arrays.vjp(function, spec, grads, setting.device, made)
        compared += comparison.compare_gradients(spec, made, grads, gradients, dtype)
    return float(max(each.share for each in compared))


def own_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    attn_mask: Any = None,
    startend_row_indices: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """This package's kernel, also where the framework's own would be chosen."""
    out, lse = attention.own(q, k, v, causal, attn_mask, startend_row_indices, scale)
    return (out, lse) if return_lse else out


def many_blocks(setting: Setting) -> list[Shape]:
    """The specs' cases fit one block of a card's sizes; these have many, and a ragged last one."""
    length = 40 if setting.dry_run else 1037
    document = 8 if setting.dry_run else 61
    shapes = [
        Shape(f"S{length}-causal", length, 4, 2, 128),
        Shape(f"S{length}", length, 2, 2, 64, causal=False),
        Shape(f"S{length}-D80-causal", length, 2, 2, 80),
        Shape(f"S{length}-D256-causal", length, 2, 2, 256),
        Shape(f"Sq{length}-Skv{2 * length}-causal", length, 2, 2, 128, kv_len=2 * length),
        Shape(f"S{length}-float-mask-causal", length, 2, 1, 128, mask="float"),
        Shape(f"S{length}-bool-mask", length, 2, 2, 64, causal=False, mask="bool"),
        Shape(f"S{length}-documents-of-{document}", length, 2, 2, 128, documents=document),
    ]
    return shapes[::4] if setting.dry_run else shapes


def large_share(setting: Setting, shape: Shape, dtype: torch.dtype) -> float:
    """FlashAttention's rule: error <= 2 x the error of the composition in the dtype + half an epsilon of the output
    (two in float32)."""
    made = {
        name: value if name in ("startend_row_indices",) or value.dtype == torch.bool else value.detach().to(dtype)
        for name, value in tensors(setting, shape).items()
    }
    dense = dense_mask(shape, made)
    causal = shape.causal and dense is None
    grad = torch.randn_like(made["q"])
    exact = composed(made, dense, causal, grad, torch.float64)
    rounded = composed(made, dense, causal, grad, dtype)
    leaves = [made[name].clone().requires_grad_() for name in "qkv"]
    out, _ = attention.own(*leaves, shape.causal, made.get("attn_mask"), made.get("startend_row_indices"))
    ours = [out, *torch.autograd.grad(out, leaves, grad)]
    epsilons = torch.finfo(dtype).eps * (2 if dtype == torch.float32 else 0.5)
    worst = 0.0
    for want, composition, got in zip(exact, rounded, ours, strict=True):
        bound = 2 * (composition.double() - want).abs().max() + epsilons * want.abs().max()
        worst = max(worst, float((got.double() - want).abs().max() / bound))
    return worst


def composed(made: dict[str, Any], dense: Any, causal: bool, grad: Any, dtype: torch.dtype) -> list[Any]:
    """[out, dq, dk, dv] step by step in the dtype."""
    leaves = [made[name].to(dtype).requires_grad_() for name in "qkv"]
    q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)
    if dense is not None:
        scores = scores.masked_fill(~dense, -math.inf) if dense.dtype == torch.bool else scores + dense.to(dtype)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2)
    return [out, *torch.autograd.grad(out, leaves, grad.to(dtype))]
