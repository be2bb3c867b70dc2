"""fused_linear on the CPU, and the packing of its weight."""

from __future__ import annotations

import functools
from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime
from fusionkit_backends.cpu.quantized_panels import quantized_panels

from fusionkit import policy
from fusionkit.dtypes import QUANTIZED
from fusionkit.errors import argument_error
from fusionkit.ledger import ledger
from fusionkit.packed_weight import PackedWeight
from fusionkit.quantized_arrays import QuantizedArrays
from fusionkit.quantized_weight import QuantizedWeight
from fusionkit.spec import Array


class PackedBytes:
    """A packed weight in the kernel library's layout; Paddle sees the same memory."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the tensor: a copy of both would hold the bytes twice."""
        return PackedBytes, (self.array,)

    @property
    def num_bytes(self) -> int:
        return int(self.array.nbytes)

    @functools.cached_property
    def tensor(self) -> Any:
        import paddle

        return paddle.Tensor(self.array, zero_copy=True)


def pack(array: Array, dtype: str, device: str) -> PackedBytes:
    return PackedBytes(runtime.native().pack_weight(array, dtype, policy.batch_invariant()))


def pack_quantized(weight: QuantizedWeight, device: str) -> PackedBytes:
    return PackedBytes(quantized_panels(weight))


def through_paddle(x: Any, weight: Any, bias: Any = None) -> Any:
    if isinstance(weight, PackedWeight):
        x, bias = paddle_ops.inputs(x, bias)
        y = packed_through_paddle(x, weight, bias)
        _count_way(weight)
        if weight.dtype in QUANTIZED and not x.stop_gradient:
            _count_gradient(weight)
        return y
    if isinstance(weight, QuantizedArrays):
        return _arrays_through_paddle(x, weight, bias)
    x, weight, bias = paddle_ops.inputs(x, weight, bias)
    choices = not x.stop_gradient, not weight.stop_gradient, policy.batch_invariant()
    if bias is None:
        (y,) = paddle_ops.run("fusionkit_fused_linear", x, weight, *choices)
    else:
        (y,) = paddle_ops.run("fusionkit_fused_linear_bias", x, weight, bias, *choices)
    return y


def packed_through_paddle(x: Any, weight: PackedWeight, bias: Any = None) -> Any:
    """Of what `paddle_ops.inputs` gave; the ledger is not told."""
    import paddle

    if not paddle.in_dynamic_mode():
        rule = "a tensor while a program is traced"
        context = "packed bytes fit one machine, and a program may run on another"
        advice = "Give it the tensor, or QuantizedArrays of codes: passes.load packs both"
        raise argument_error("fused_linear", "weight", rule, "a PackedWeight", context, advice)
    packed = weight.payload_for("cpu").tensor
    wanted = not x.stop_gradient, bias is not None and not bias.stop_gradient
    if any(wanted):
        return _through_quantized(x, weight, packed, bias, wanted)
    (y,) = paddle_ops.run("fusionkit_fused_linear_packed", x, packed, bias, *weight.shape, policy.batch_invariant())
    return y


def _through_quantized(x: Any, weight: PackedWeight, packed: Any, bias: Any, wanted: tuple[bool, bool]) -> Any:
    """With gradients of x and bias, those that are wanted."""
    if bias is None:
        (y,) = paddle_ops.run("fusionkit_fused_linear_quantized", x, packed, *weight.shape)
    else:
        (y,) = paddle_ops.run("fusionkit_fused_linear_quantized_bias", x, packed, bias, *weight.shape, *wanted)
    return y


def _arrays_through_paddle(x: Any, weight: QuantizedArrays, bias: Any) -> Any:
    x, bias = paddle_ops.inputs(x, bias)
    arrays = weight.codes, weight.scales, weight.minimums
    bits = 8 if weight.dtype == "int8" else 4
    ledger().way("fused_linear", "cpu", f"{weight.dtype} packed in the call").add()
    attributes = bits, weight.group_size or 0, weight.in_features, weight.activations is not None
    (y,) = paddle_ops.run("fusionkit_quantized_linear", x, *arrays, bias, *attributes)
    return y


def through_numpy(x: Any, weight: Any, bias: Any = None) -> Any:
    native, invariant = runtime.native(), policy.batch_invariant()
    if isinstance(weight, PackedWeight):
        packed = weight.payload_for("cpu").array
        _count_way(weight)
        return native.linear_packed(x, packed, *weight.shape, bias, batch_invariant=invariant)
    if isinstance(weight, QuantizedArrays):
        advice = "Pack it: fusionkit.pack_weight(arrays.weight())"
        raise argument_error("fused_linear", "weight", "an array or a PackedWeight", "QuantizedArrays", advice=advice)
    return native.linear(x, weight, bias, invariant)


def _count_way(weight: PackedWeight) -> None:
    """In the ledger: a quantized weight multiplies x's digits, or x in int8."""
    if weight.dtype in QUANTIZED:
        multiplied = "digits of x" if weight.activations is None else f"x in {weight.activations}"
        ledger().way("fused_linear", "cpu", f"{weight.dtype} by {multiplied}").add()


def _count_gradient(weight: PackedWeight) -> None:
    way = f"{weight.dtype} dequantized to panels of its transpose, for x's gradient"
    ledger().way("fused_linear", "cpu", way).add()


def vjp(grad_outputs: Any, x: Any, weight: Any, bias: Any = None) -> dict[str, Any]:
    """A pack gets no gradient."""
    if isinstance(weight, PackedWeight):
        _count_gradient(weight)
        packed = weight.payload_for("cpu").array
        dx, dbias = runtime.native().linear_packed_grad(packed, *weight.shape, grad_outputs, bias)
        return {"x": dx} if bias is None else {"x": dx, "bias": dbias}
    dx, dweight, dbias = runtime.native().linear_grad(x, weight, grad_outputs, bias)
    gradients = {"x": dx, "weight": dweight}
    return gradients if bias is None else {**gradients, "bias": dbias}
