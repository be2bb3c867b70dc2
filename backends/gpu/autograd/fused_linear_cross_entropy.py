"""fused_linear_cross_entropy on PyTorch tensors: products by cuBLAS, the cross entropy of a chunk of tokens by Triton.

A chunk's logits are float32 and its gradients have x's dtype; together they stay below CHUNK_BYTES, whatever the
vocabulary. The gradients of x and weight are taken in the forward pass, while the logits are at hand; the backward pass
multiplies them by the loss's gradient. At 2048 tokens, 5120 x 32000 in bfloat16 there is one chunk, so that nothing is
added up; weight's gradient is 327 MB, read and written once more by the backward pass: 0.16 ms on a card that moves
4.2 TB/s. Predicted, not run on hardware: 1.10 times the three products at 2048 tokens and at 16384, where two of three
chunks add to a float32 gradient of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from fusionkit_backends.gpu.autograd.products import product
from fusionkit_backends.gpu.autograd.rows import as_rows, require_shape
from fusionkit_backends.gpu.autograd.values import require_values
from fusionkit_backends.gpu.kernels.cross_entropy import cross_entropy

OP = "fused_linear_cross_entropy"
CHUNK_BYTES = 2**30  # with less there are more chunks, each of which moves 1.3 GB to add to weight's gradient
MULTIPLE = 128  # rows of cuBLAS's tiles; a chunk has no fewer


def chunk_rows(num_tokens: int, vocab_size: int, itemsize: int) -> int:
    """Tokens of a chunk: as many as CHUNK_BYTES hold, shared out evenly."""
    held = vocab_size * (4 if itemsize == 4 else 4 + itemsize)  # in float32 the gradient takes the logits' place
    most = max(MULTIPLE, CHUNK_BYTES // held // MULTIPLE * MULTIPLE)
    chunks = max(1, -(-num_tokens // most))
    even = -(-num_tokens // chunks)
    return most if chunks == 1 else min(most, -(-even // MULTIPLE) * MULTIPLE)


def _run(
    x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, ignore_index: int, wants_x: bool, wants_weight: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Losses [tokens], and the gradients of their sum; that of weight in float32 if it was added up."""
    rows, targets = as_rows(x), labels.reshape(-1)
    operand = weight.to(x.dtype)
    tokens, vocab_size = rows.shape[0], weight.shape[1]
    size = max(1, min(tokens, chunk_rows(tokens, vocab_size, x.element_size())))
    logits = torch.empty((size, vocab_size), dtype=torch.float32, device=x.device)
    gradient = None
    if wants_x or wants_weight:
        gradient = logits if x.dtype == torch.float32 else torch.empty_like(logits, dtype=x.dtype)
    gradient_sums = torch.empty(size, dtype=torch.float32, device=x.device)
    losses = torch.empty(tokens, dtype=torch.float32, device=x.device)
    dx = torch.empty(rows.shape, dtype=x.dtype, device=x.device) if wants_x else None
    dweight_dtype = weight.dtype if size >= tokens else torch.float32  # one chunk: nothing is added up
    dweight = torch.empty(weight.shape, dtype=dweight_dtype, device=x.device) if wants_weight else None
    if tokens == 0 and dweight is not None:
        dweight.zero_()
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        length = part.stop - start
        product(rows[part], operand, torch.float32, out=logits[:length])
        dlogits = None if gradient is None else gradient[:length]
        cross_entropy(logits[:length], targets[part], ignore_index, losses[part], dlogits, gradient_sums[:length])
        if dlogits is not None and dx is not None:
            _input_gradient(dlogits, gradient_sums[:length], operand, targets[part], dx[part])
        if dlogits is not None and dweight is not None:
            product(rows[part].t(), dlogits, dweight_dtype, out=dweight, add=start > 0)
    return losses, dx, dweight


def _input_gradient(
    dlogits: torch.Tensor, sums: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dx: torch.Tensor
) -> None:
    """dx = dlogits W^T, in 16 bits less sums W[:, label]^T.

    softmax - onehot adds up to 0, its rounded values do not, and what all columns of W have in common would be
    multiplied by what they add up to.
    """
    if dx.dtype == torch.float32:
        product(dlogits, weight.t(), dx.dtype, out=dx)
        return
    wide = torch.empty(dx.shape, dtype=torch.float32, device=dx.device)
    product(dlogits, weight.t(), torch.float32, out=wide)
    columns = weight[:, targets.clamp(0, weight.shape[1] - 1)].t()  # where no label counts, sums are 0
    dx.copy_(wide.addcmul_(columns.to(torch.float32), sums[:, None], value=-1))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, labels: Any, ignore_index: int, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants = [training and wanted for wanted in ctx.needs_input_grad[:2]]
        losses, *gradients = _run(x, weight, labels, ignore_index, *wants)
        ctx.gradients, ctx.ignore_index = gradients, ignore_index
        ctx.save_for_backward(x, weight, labels)
        num_tokens = (labels != ignore_index).sum()
        ctx.mark_non_differentiable(num_tokens)
        return losses.sum(), num_tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dloss_sum: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        x, weight, labels = ctx.saved_tensors
        if ctx.gradients is None:  # a second pass through a graph that was retained: the first took them
            _, *ctx.gradients = _run(x, weight, labels, ctx.ignore_index, *ctx.needs_input_grad[:2])
        (dx, dweight), ctx.gradients = ctx.gradients, None
        if dx is not None:
            dx = dx.mul_(dloss_sum).view(x.shape)
        if dweight is not None:
            out = dweight if dweight.dtype == weight.dtype else torch.empty_like(dweight, dtype=weight.dtype)
            dweight = torch.mul(dweight, dloss_sum, out=out)
        return dx, dweight, None, None, None


def fused_linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -100,
) -> tuple[torch.Tensor, torch.Tensor]:
    require_shape(labels, x.shape[:-1], "labels")
    require_shape(weight, (x.shape[-1], weight.shape[-1]), "weight")
    require_values(OP, "labels", labels, weight.shape[1], ignore_index)
    # Under no_grad parameters still require gradients: an evaluation must not pay for them.
    return _LinearCrossEntropy.apply(x, weight, labels, ignore_index, torch.is_grad_enabled())
