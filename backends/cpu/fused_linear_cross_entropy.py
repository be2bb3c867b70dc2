"""fused_linear_cross_entropy on the CPU. Its gradients are taken in the forward pass, while the logits are at hand.

With a group the logits of a chunk of tokens stay where they are, while all ranks exchange three numbers for each token.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from fusionkit_backends.cpu import paddle_ops, runtime
from fusionkit_backends.cpu.agreement import Agreement

from fusionkit.errors import argument_error
from fusionkit.parallel import Communicator
from fusionkit.parallel.groups import communicator_of
from fusionkit.spec import Array

OP = "fused_linear_cross_entropy"


def through_paddle(x: Any, weight: Any, labels: Any, *, ignore_index: int = -100, group: Any = None) -> tuple[Any, Any]:
    if group is not None:
        from fusionkit_backends.cpu import collective_layers

        return collective_layers.cross_entropy(x, weight, labels, ignore_index, communicator_of(group), over_ranks)
    x, weight, labels = paddle_ops.inputs(x, weight, labels)
    wanted = not x.stop_gradient, not weight.stop_gradient
    loss_sum, num_tokens, *_ = paddle_ops.run(
        "fusionkit_fused_linear_cross_entropy", x, weight, labels, ignore_index, *wanted
    )
    num_tokens.stop_gradient = True
    return loss_sum, num_tokens


def through_numpy(x: Any, weight: Any, labels: Any, *, ignore_index: int = -100, group: Any = None) -> tuple[Any, Any]:
    if group is not None:
        return over_ranks(x, weight, labels, ignore_index, communicator_of(group), None, None)
    loss_sum, num_tokens, _, _ = _alone(x, weight, labels, ignore_index, want_grads=False)
    return loss_sum.reshape(()), num_tokens.reshape(())


def vjp(
    grad_outputs: Any, x: Any, weight: Any, labels: Any, *, ignore_index: int = -100, group: Any = None
) -> dict[str, Any]:
    dloss_sum, _ = grad_outputs
    if group is None:
        _, _, dx, dweight = _alone(x, weight, labels, ignore_index, want_grads=True)
    else:
        dx, dweight = np.empty(x.shape, x.dtype), np.empty(weight.shape, weight.dtype)
        over_ranks(x, weight, labels, ignore_index, communicator_of(group), dx, dweight)
    factor = np.asarray(dloss_sum, dtype=np.float32).reshape(1)
    for gradient in (dx, dweight):
        runtime.native().scale(gradient, factor)
    return {"x": dx.reshape(x.shape), "weight": dweight}


def over_ranks(
    x: Array,
    weight: Array,
    labels: Array,
    ignore_index: int,
    communicator: Communicator,
    dx: Array | None,
    dweight: Array | None,
) -> tuple[Array, Array]:
    """loss_sum and num_tokens over all ranks' columns; fills dx and dweight, those that are wanted."""
    rows, targets = _rows(x, labels), labels.reshape(-1)
    checksum = zlib.crc32(np.ascontiguousarray(targets))
    text = (
        f"x {list(x.shape)} {x.dtype}, weight [{weight.shape[0]}, ...] {weight.dtype}, "
        f"labels {labels.dtype} with checksum {checksum:08x}, ignore_index {ignore_index}"
    )
    with Agreement(communicator, OP, text):
        widths = communicator.all_gather(np.array(weight.shape[1]))
        loss_sum, num_tokens = runtime.native().linear_cross_entropy_of_shards(
            rows,
            weight,
            targets,
            ignore_index,
            start=int(widths[: communicator.rank].sum()),
            vocab_size=int(widths.sum()),
            widest=int(widths.max()),
            exchange=communicator.all_gather,
            dx=None if dx is None else dx.reshape(rows.shape),
            dweight=dweight,
        )
    return loss_sum.reshape(()), num_tokens.reshape(())


def _alone(x: Any, weight: Any, labels: Any, ignore_index: int, want_grads: bool) -> Any:
    rows = _rows(x, labels)
    return runtime.native().linear_cross_entropy(rows, weight, labels.reshape(-1), ignore_index, want_grads)


def _rows(x: Any, labels: Any) -> Any:
    if labels.shape != x.shape[:-1]:
        rule = f"[...] with ... = {list(x.shape[:-1])}"
        raise argument_error(OP, "labels", rule, list(labels.shape))
    return x.reshape(-1, x.shape[-1])
