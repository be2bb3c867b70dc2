"""Cross entropy of rows of logits, and the gradient of each logit: softmax - onehot(label).

    loss = log(sum exp(logits)) - logits[label]

One program a row reads it twice, for the partition and for the gradient; the second time it comes from the second-level
cache: 132 multiprocessors with two rows of 32000 float32 hold 34 MB of 50. The floor of a chunk is the logits read once
and the gradient written: at 2048 x 32000 in bfloat16 262 + 131 MB, beside three products of 0.67 TFLOP. Predicted, not
run on hardware: 0.11 ms, 4% of those products at 700 TFLOP/s.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from fusionkit_backends.gpu.kernels.launch import launch

BLOCK, NUM_WARPS = 4096, 8


@triton.jit(do_not_specialize=["ignore_index"])
def cross_entropy_kernel(
    logits_ptr, label_ptr, loss_ptr, gradient_ptr, gradient_sum_ptr, vocab_size, ignore_index, label_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(label_ptr + row * label_stride).to(tl.int64)
    counted = label != ignore_index
    known = (label >= 0) & (label < vocab_size)
    logits_ptr += row * vocab_size
    # Lane by lane: a reduction over the program at every block would wait for all warps.
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logit = tl.load(logits_ptr + column, mask=column < vocab_size, other=float("-inf"))
        rising = tl.maximum(largest, logit)
        base = tl.where(rising == float("-inf"), 0.0, rising)  # its difference to itself would be NaN
        total = total * tl.exp(largest - base) + tl.exp(logit - base)
        largest = rising
    # An unknown label is never read. The load stands before the reductions, whose barriers keep it
    # from finding the gradient that another warp has put in the logits' place.
    at_label = tl.load(logits_ptr + label, mask=known, other=0.0)
    top = tl.max(largest, 0)
    # Loss and gradient come from differences to the largest logit, whose own size would round them away. An unknown
    # label makes NaN of both, which go through this logarithm.
    log_total = tl.where(known, tl.log(tl.sum(total * tl.exp(largest - top), 0)), float("nan"))
    tl.store(loss_ptr + row, tl.where(counted, log_total - (at_label - top), 0.0))
    if gradient_ptr is not None:
        gradient_ptr += row * vocab_size
        gradient_sum = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab_size, BLOCK):
            column = start + tl.arange(0, BLOCK)
            logit = tl.load(logits_ptr + column, mask=column < vocab_size, other=float("-inf"))
            gradient = tl.exp((logit - top) - log_total) - tl.where(column == label, 1.0, 0.0)
            gradient = tl.where(counted, gradient, 0.0).to(gradient_ptr.dtype.element_ty)
            gradient_sum += tl.where(column < vocab_size, gradient, 0.0).to(tl.float32)
            tl.store(gradient_ptr + column, gradient, mask=column < vocab_size)
        tl.store(gradient_sum_ptr + row, tl.sum(gradient_sum, 0))


def cross_entropy(
    logits: Any, labels: Any, ignore_index: int, losses: Any, gradient: Any | None, gradient_sums: Any | None
) -> None:
    """Write losses, and where they are given the gradient, which may be `logits` itself, and its sums.

    Args:
        logits: [rows, vocab_size] float32, contiguous.
        labels: [rows] int32 or int64.
        losses: [rows] float32, 0 where the label is ignore_index.
        gradient: [rows, vocab_size], contiguous, of any floating dtype; of the sum of the losses.
        gradient_sums: [rows] float32, of the gradient's rows as they are rounded; there if the gradient is.
    """
    rows, vocab_size = logits.shape
    launch(
        cross_entropy_kernel, (rows,), logits, labels, losses, gradient, gradient_sums, vocab_size, ignore_index,
        *labels.stride(), BLOCK=min(BLOCK, triton.next_power_of_2(vocab_size)), num_warps=NUM_WARPS,
    )  # fmt: skip
