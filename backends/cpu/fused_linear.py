"""fused_linear on the CPU, and the packing of its weight."""

from __future__ import annotations

import functools
from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime

from fusionkit import policy
from fusionkit.errors import argument_error
from fusionkit.packed_weight import PackedWeight
from fusionkit.spec import Array


class PackedBytes:
    """A packed weight in the kernel library's layout; Paddle sees the same memory."""

    def __init__(self, array: Array) -> None:
        self.array = array

    @functools.cached_property
    def tensor(self) -> Any:
        import paddle

        return paddle.Tensor(self.array, zero_copy=True)


def pack(array: Array, dtype: str, device: str) -> PackedBytes:
    return PackedBytes(runtime.native().pack_weight(array, dtype, policy.batch_invariant()))


def through_paddle(x: Any, weight: Any, bias: Any = None) -> Any:
    if isinstance(weight, PackedWeight):
        return _packed_through_paddle(x, weight, bias)
    x, weight, bias = paddle_ops.inputs(x, weight, bias)
    choices = not x.stop_gradient, not weight.stop_gradient, policy.batch_invariant()
    if bias is None:
        (y,) = paddle_ops.run("fusionkit_fused_linear", x, weight, *choices)
    else:
        (y,) = paddle_ops.run("fusionkit_fused_linear_bias", x, weight, bias, *choices)
    return y


def _packed_through_paddle(x: Any, weight: PackedWeight, bias: Any) -> Any:
    import paddle

    if not paddle.in_dynamic_mode():
        context = "packed bytes fit one machine, and a program may run on another"
        raise argument_error("fused_linear", "weight", "a tensor while a program is traced", "a PackedWeight", context)
    x, bias = paddle_ops.inputs(x, bias)
    packed = weight.payload_for("cpu").tensor
    (y,) = paddle_ops.run("fusionkit_fused_linear_packed", x, packed, bias, *weight.shape, policy.batch_invariant())
    return y


def through_numpy(x: Any, weight: Any, bias: Any = None) -> Any:
    native, invariant = runtime.native(), policy.batch_invariant()
    if isinstance(weight, PackedWeight):
        packed = weight.payload_for("cpu").array
        return native.linear_packed(x, packed, *weight.shape, bias, batch_invariant=invariant)
    return native.linear(x, weight, bias, invariant)


def vjp(grad_outputs: Any, x: Any, weight: Any, bias: Any = None) -> dict[str, Any]:
    dx, dweight, dbias = runtime.native().linear_grad(x, weight, grad_outputs, bias)
    gradients = {"x": dx, "weight": dweight}
    return gradients if bias is None else {**gradients, "bias": dbias}
