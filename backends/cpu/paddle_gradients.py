"""Runs each differentiable custom op once, alone, before threads use them.

Paddle 3.3 connects an op with its gradient at the op's first call, in a map of the process that nothing guards: two
threads' first calls end in "Attribute cast error", wrong gradients or a crash, in some 1 of 30 processes whose ranks
are threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Sizes of the tensors that carry a gradient, then the other arguments; None stands for an absent tensor.
SMALLEST: dict[str, tuple[tuple[list[int], ...], tuple[Any, ...]]] = {
    "fusionkit_flash_attention": (([1, 1, 1, 8],) * 3, (None, None, False, 1.0)),
    "fusionkit_fused_linear": (([1, 1], [1, 1]), (True, True)),
    "fusionkit_fused_linear_bias": (([1, 1], [1, 1], [1]), (True, True)),
    "fusionkit_fusion_add_rms_norm": (([1, 1], [1, 1], [1]), (1e-5,)),
    "fusionkit_fusion_rms_norm": (([1, 1], [1]), (1e-5,)),
    "fusionkit_fusion_rope": (([1, 1, 1, 2],) * 2 + ([1, 1],) * 2, (None, False)),
    "fusionkit_swiglu": (([1, 1], [1, 1]), ()),
}
LOSS = "fusionkit_fused_linear_cross_entropy"  # whose labels are integers


def connect(run_custom_op: Callable[..., Any]) -> None:
    import paddle

    with paddle.base.dygraph.guard(paddle.CPUPlace()), paddle.enable_grad():
        for op, (sizes, arguments) in SMALLEST.items():
            run_custom_op(op, *(_ones(paddle, size) for size in sizes), *arguments)
        label = paddle.zeros([1], "int64")
        run_custom_op(LOSS, _ones(paddle, [1, 1]), _ones(paddle, [1, 1]), label, -100, True, True)


def _ones(paddle: Any, size: list[int]) -> Any:
    tensor = paddle.ones(size, "float32")
    tensor.stop_gradient = False
    return tensor
