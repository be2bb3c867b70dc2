"""fused_linear_cross_entropy on the CPU. Its gradients are taken in the forward pass, while the logits are at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from fusionkit_backends.cpu import paddle_ops, runtime

from fusionkit.errors import argument_error


def through_paddle(
    x: Any, weight: Any, labels: Any, *, ignore_index: int = -100, group: Any = None, vocab_start: int = 0
) -> tuple[Any, Any]:
    x, weight, labels = paddle_ops.inputs(x, weight, labels)
    wanted = not x.stop_gradient, not weight.stop_gradient
    loss_sum, num_tokens, *_ = paddle_ops.run(
        "fusionkit_fused_linear_cross_entropy", x, weight, labels, ignore_index, *wanted
    )
    num_tokens.stop_gradient = True
    return loss_sum, num_tokens


def through_numpy(
    x: Any, weight: Any, labels: Any, *, ignore_index: int = -100, group: Any = None, vocab_start: int = 0
) -> tuple[Any, Any]:
    loss_sum, num_tokens, _, _ = _run(x, weight, labels, ignore_index, want_grads=False)
    return loss_sum.reshape(()), num_tokens.reshape(())


def vjp(
    grad_outputs: Any,
    x: Any,
    weight: Any,
    labels: Any,
    *,
    ignore_index: int = -100,
    group: Any = None,
    vocab_start: int = 0,
) -> dict[str, Any]:
    dloss_sum, _ = grad_outputs
    _, _, dx, dweight = _run(x, weight, labels, ignore_index, want_grads=True)
    factor = np.asarray(dloss_sum, dtype=np.float32).reshape(1)
    for gradient in (dx, dweight):
        runtime.native().scale(gradient, factor)
    return {"x": dx.reshape(x.shape), "weight": dweight}


def _run(x: Any, weight: Any, labels: Any, ignore_index: int, want_grads: bool) -> Any:
    if labels.shape != x.shape[:-1]:
        rule = f"[...] with ... = {list(x.shape[:-1])}"
        raise argument_error("fused_linear_cross_entropy", "labels", rule, list(labels.shape))
    rows = x.reshape(-1, x.shape[-1])
    return runtime.native().linear_cross_entropy(rows, weight, labels.reshape(-1), ignore_index, want_grads)
