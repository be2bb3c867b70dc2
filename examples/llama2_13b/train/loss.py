"""What a training command minimises: the loop is given one of these."""

from __future__ import annotations

from collections.abc import Callable

import paddle

from examples.llama2_13b.data.packing import Batch
from examples.llama2_13b.model import Llama

# (model, micro-batch) -> the sum of the losses of its targets, float32; the loop divides by their number.
Loss = Callable[[Llama, Batch], paddle.Tensor]


def next_token(model: Llama, batch: Batch) -> paddle.Tensor:
    """Cross entropy of each label that is a target."""
    arrays = (batch.input_ids, batch.labels, batch.position_ids, batch.startend_row_indices)
    loss_sum, _ = model.loss(*map(paddle.to_tensor, arrays))
    return loss_sum
