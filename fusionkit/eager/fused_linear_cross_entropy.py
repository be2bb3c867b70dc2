"""fused_linear_cross_entropy composed of Paddle's own ops. The logits are held whole, in float32."""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.eager.precision import accumulation_dtype, rounded_to
from fusionkit.eager.shapes import require_shape
from fusionkit.errors import argument_error
from fusionkit.parallel import collectives

OP = "fused_linear_cross_entropy"


def fused_linear_cross_entropy(x: Any, weight: Any, labels: Any, *, ignore_index: int = -100, group: Any = None) -> Any:
    """Not F.cross_entropy: its loss is wrong where the label's probability underflows (Paddle 3.3.1)."""
    require_shape(OP, "labels", labels, x.shape[:-1])
    hidden_size, num_columns = weight.shape
    start, vocab_size = (0, num_columns) if group is None else _place(num_columns, x, group)
    if isinstance(labels, paddle.Tensor):
        _check_labels(labels, vocab_size, ignore_index)
    operand = rounded_to(x.dtype, weight) if weight.dtype == paddle.float32 else weight
    logits = x.reshape([-1, hidden_size]).astype(paddle.float32) @ operand.astype(paddle.float32)
    targets = labels.reshape([-1])
    counted = targets != ignore_index
    if group is not None:
        losses = _losses_over_ranks(logits, targets - start, group)
        return _total(losses, counted, x)
    # Paddle would count a negative label from the end: one past the end raises in a static program too.
    inside = paddle.where(targets < 0, paddle.full_like(targets, vocab_size), targets)
    index = inside * counted.astype(targets.dtype)
    # The loss depends on differences alone, which the largest logit's own size would round away.
    logits = logits - logits.max(-1, keepdim=True).detach()
    picked = paddle.take_along_axis(logits, index.unsqueeze(-1), -1).squeeze(-1)
    return _total(paddle.logsumexp(logits, -1) - picked, counted, x)


def _total(losses: Any, counted: Any, x: Any) -> tuple[Any, Any]:
    losses = losses * counted.astype(paddle.float32)
    loss_sum = losses.astype(accumulation_dtype(x)).sum().astype(paddle.float32)
    return loss_sum, counted.astype(paddle.int64).sum()


def _place(num_columns: int, x: Any, group: Any) -> tuple[int, int]:
    """This rank's first entry of the vocabulary, and the entries of all ranks."""
    own = paddle.to_tensor([num_columns], dtype="int64", place=x.place)
    widths = collectives.gathered(own, group).tolist()
    return sum(widths[: group.rank]), sum(widths)


def _losses_over_ranks(logits: Any, columns: Any, group: Any) -> Any:
    """Two messages: the largest logits, then the sums of the exponentials beside the label's logits.

    columns: each label counted from this rank's first column; another rank has those outside of its columns.
    """
    own_largest = logits.max(-1).detach()
    largest = collectives.gathered(own_largest.unsqueeze(0), group).max(0)
    logits = logits - largest.unsqueeze(-1)
    is_here = (columns >= 0) & (columns < logits.shape[-1])
    index = columns * is_here.astype(columns.dtype)
    picked = paddle.take_along_axis(logits, index.unsqueeze(-1), -1).squeeze(-1) * is_here.astype(paddle.float32)
    sums = collectives.all_reduce(paddle.stack([logits.exp().sum(-1), picked]), group)
    return sums[0].log() - sums[1]


def _check_labels(labels: Any, vocab_size: int, ignore_index: int) -> None:
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))
    if bool(outside.any()):
        rule = f"in [0, {vocab_size}) or ignore_index ({ignore_index})"
        raise argument_error(OP, "labels", rule, int(labels[outside][0]))
