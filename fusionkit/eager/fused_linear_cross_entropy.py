"""fused_linear_cross_entropy composed of Paddle's own ops. The logits are held whole, in float32."""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.eager.precision import accumulation_dtype, rounded_to
from fusionkit.eager.shapes import require_shape
from fusionkit.errors import argument_error

OP = "fused_linear_cross_entropy"


def fused_linear_cross_entropy(
    x: Any, weight: Any, labels: Any, *, ignore_index: int = -100, group: Any = None, vocab_start: int = 0
) -> Any:
    """Not F.cross_entropy: its loss is wrong where the label's probability underflows (Paddle 3.3.1)."""
    require_shape(OP, "labels", labels, x.shape[:-1])
    if vocab_start != 0:
        raise argument_error(OP, "vocab_start", "0 when group is None", vocab_start)
    hidden_size, vocab_size = weight.shape
    if isinstance(labels, paddle.Tensor):
        _check_labels(labels, vocab_size, ignore_index)
    operand = rounded_to(x.dtype, weight) if weight.dtype == paddle.float32 else weight
    logits = x.reshape([-1, hidden_size]).astype(paddle.float32) @ operand.astype(paddle.float32)
    targets = labels.reshape([-1])
    counted = targets != ignore_index
    # Paddle would count a negative label from the end: one past the end raises in a static program too.
    inside = paddle.where(targets < 0, paddle.full_like(targets, vocab_size), targets)
    index = inside * counted.astype(targets.dtype)
    # The loss depends on differences alone, which the largest logit's own size would round away.
    logits = logits - logits.max(-1, keepdim=True).detach()
    picked = paddle.take_along_axis(logits, index.unsqueeze(-1), -1).squeeze(-1)
    losses = (paddle.logsumexp(logits, -1) - picked) * counted.astype(paddle.float32)
    loss_sum = losses.astype(accumulation_dtype(x)).sum().astype(paddle.float32)
    return loss_sum, counted.astype(paddle.int64).sum()


def _check_labels(labels: Any, vocab_size: int, ignore_index: int) -> None:
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))
    if bool(outside.any()):
        rule = f"in [0, {vocab_size}) or ignore_index ({ignore_index})"
        raise argument_error(OP, "labels", rule, int(labels[outside][0]))
