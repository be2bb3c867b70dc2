"""What a training command minimises: the loop is given one of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import paddle
from paddle import Tensor

from examples.llama2_13b.data.packing import Batch
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.pipeline import Forward

# (model, micro-batch, what the stage before has handed on, if there is one) -> the sum of the losses of its targets,
# float32; the loop divides by their number.
Loss = Callable[[Llama, Batch, Tensor | None], Tensor]


def next_token(model: Llama, batch: Batch, received: Tensor | None) -> Tensor:
    """Cross entropy of each label that is a target."""
    input_ids, labels, position_ids, rows = _tensors(batch)
    loss_sum, _ = model.loss(input_ids, labels, position_ids, rows, received)
    return loss_sum


def chunk_of(model: Llama, loss: Loss, batches: Sequence[Batch]) -> Forward:
    """(number of a micro-batch, chunk of the model's layers, what the one before has handed on) -> what it hands on; of
    the last, the loss."""

    def forward(number: int, chunk: int, received: Tensor | None) -> Tensor:
        if model.pipeline.ends_with(chunk):
            return loss(model, batches[number], received)
        input_ids, _, position_ids, rows = _tensors(batches[number])
        return model.hand_on(chunk, input_ids, position_ids, rows, received)

    return forward


def _tensors(batch: Batch) -> Iterator[Tensor]:
    arrays = (batch.input_ids, batch.labels, batch.position_ids, batch.startend_row_indices)
    return map(paddle.to_tensor, arrays)
