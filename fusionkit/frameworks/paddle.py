"""PaddlePaddle tensors: eager ones, and the values of a graph that `to_static` traces."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import paddle

from fusionkit.dtypes import FLOATING
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.spec import OpSpec, TensorSpec

NAME = "paddle"

_PIR_VALUE = paddle.base.libpaddle.pir.Value
_DTYPES = {getattr(paddle, name): name for name in DTYPES if hasattr(paddle, name)}
_PADDLE_DTYPES = {name: dtype for dtype, name in _DTYPES.items()}

# Only host memory can exist in this process: places need not be compared on the hot path (0.15 us each).
_HOST_ONLY = not (
    paddle.is_compiled_with_cuda() or paddle.is_compiled_with_xpu() or paddle.device.get_all_custom_device_type()
)

_AMP: Any = sys.modules["paddle.amp.auto_cast"]  # `paddle.amp.auto_cast` is a function that hides the module


def autocast() -> Any:
    """Paddle itself switches automatic mixed precision off on the CPU place, with a warning; what the user asked for
    stays in this state, and our ops honour it. Read without `amp_state()`, whose call would be half of the cost."""
    state = _AMP._g_amp_state_
    return state if state is not None and state["enable"] else None


def without_autocast() -> Any:
    """Inside an op whose inputs are cast already, Paddle must not cast the composition's own steps again."""
    return paddle.amp.auto_cast(enable=False)


def owns(kind: type) -> bool:
    return issubclass(kind, paddle.Tensor | _PIR_VALUE)


def describe(tensor: Any) -> TensorSpec:
    dtype = _DTYPES.get(tensor.dtype) or str(tensor.dtype).removeprefix("paddle.")
    if is_symbolic(tensor):
        return TensorSpec(tuple(tensor.shape), dtype, None)
    return TensorSpec(tuple(tensor.shape), dtype, device_name(tensor.place), tensor.is_contiguous())


def device_name(place: Any) -> str:
    """ "Place(gpu:0)" is "gpu:0"."""
    return str(place).removeprefix("Place(").removesuffix(")")


def current_device() -> str:
    device: str = paddle.get_device()
    return device


def wants_gradient(tensors: list[Any]) -> bool:
    return paddle.is_grad_enabled() and any(not tensor.stop_gradient for tensor in tensors)


def is_symbolic(tensor: Any) -> bool:
    return isinstance(tensor, _PIR_VALUE)


def place_of(tensor: Any) -> object | None:
    return None if _HOST_ONLY else tensor.place


def cast_for(state: Any, spec: OpSpec, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Cast floating inputs as the op's class says.

    Float32-only inputs and float32 weights keep their dtype, as do inputs that the op writes and those without a
    gradient: in float16 a mask's -3.4e38 would become -inf. A float32 weight beside a 16-bit activation is a master
    weight, which every op takes: casting it here would cost a copy and give the same result.
    """
    dtype = _wanted_dtype(state, spec)
    if dtype is None:
        return dict(tensors)
    return {name: _cast(tensor, spec, name, dtype) for name, tensor in tensors.items()}


def _wanted_dtype(state: Any, spec: OpSpec) -> Any:
    if state["level"].upper() == "O0":
        return None
    amp = spec.amp
    if spec.name in (state.get("custom_white_list") or ()):
        amp = "low"
    if spec.name in (state.get("custom_black_list") or ()):
        amp = "float32"
    if amp == "float32":
        return paddle.float32
    if amp == "keep" and state["level"].upper() != "O2":
        return None
    dtype = state["dtype"]
    return _PADDLE_DTYPES[dtype.lower()] if isinstance(dtype, str) else dtype


def _cast(tensor: Any, spec: OpSpec, name: str, dtype: Any) -> Any:
    declared = spec.input(name)
    master_or_table = "float32" in declared.dtypes and not set(FLOATING) <= set(declared.dtypes)
    if master_or_table or name in spec.mutates or not declared.differentiable:
        return tensor
    return tensor.astype(dtype) if _DTYPES.get(tensor.dtype) in FLOATING and tensor.dtype != dtype else tensor


def from_numpy(array: np.ndarray[Any, Any], device: str) -> Any:
    """A tensor with a copy of the array; Paddle takes uint16 for bfloat16's bits."""
    if array.dtype == DTYPES["bfloat16"]:
        array = np.ascontiguousarray(array).view(np.uint16)
    return paddle.to_tensor(array, place=device)


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array.view(DTYPES["bfloat16"]) if tensor.dtype == paddle.bfloat16 else array


def host_view(tensor: Any) -> np.ndarray[Any, Any]:
    """The tensor's own memory as an array, without a copy: `numpy()` copies, and DLPack has no bfloat16 for NumPy.

    The tensor must be on the host, and may be strided; the array keeps it alive.
    """
    shape, dtype = tuple(tensor.shape), DTYPES[_DTYPES[tensor.dtype]]
    if 0 in shape:
        return np.empty(shape, dtype)
    span = sum((size - 1) * stride for size, stride in zip(shape, tensor.strides, strict=True)) + 1
    memory = (ctypes.c_char * (span * dtype.itemsize)).from_address(tensor.data_ptr())
    memory.owner = tensor
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype=dtype), shape, strides)


def over_tensors(value: Any, device: str) -> Any:
    return from_numpy(value, device) if isinstance(value, np.ndarray) else value


def carried(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The function over NumPy arrays: carried to the device and back; what it mutates is copied back in place."""

    def call(*args: Any, **kwargs: Any) -> Any:
        arrays = [*args, *kwargs.values()]
        tensors = [over_tensors(value, device) for value in arrays]
        with paddle.no_grad():
            result = function(*tensors[: len(args)], **dict(zip(kwargs, tensors[len(args) :], strict=True)))
        for array, tensor in zip(arrays, tensors, strict=True):
            if isinstance(array, np.ndarray) and tensor.inplace_version:
                array[...] = to_numpy(tensor)
        return tuple(map(to_numpy, result)) if isinstance(result, tuple | list) else to_numpy(result)

    return call


def vjp(
    function: Callable[..., Any], spec: OpSpec, grad_outputs: Any, device: str, arguments: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, Any] | None]:
    """Gradients of `function` through Paddle's autograd, NumPy arrays in and out."""
    tensors = {name: over_tensors(value, device) for name, value in arguments.items()}
    differentiable = [i.name for i in spec.inputs if i.differentiable]
    wanted = [name for name in differentiable if isinstance(tensors.get(name), paddle.Tensor)]  # a pack is frozen
    for name in wanted:
        tensors[name].stop_gradient = False
    outputs = _listed(function(**tensors))
    grads = [over_tensors(grad, device) for grad in _listed(grad_outputs)]
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and not o.stop_gradient]
    # Not paddle.grad, whose state is the process's: ranks that are threads crash in it (Paddle 3.3.1).
    paddle.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    gradients = {name: tensors[name].grad for name in wanted}
    return {name: None if g is None else to_numpy(g) for name, g in gradients.items()}


# Paddle 3.3.1 crashed in 1 of some 600 traces after a traced function that holds an op with two results was freed
# (7 of 7 runs without a crash while they are kept).
_traced: list[Any] = []


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a static graph, with the scalars among its keyword arguments fixed."""

    def call(**arguments: Any) -> Any:
        tensors = {name: value for name, value in arguments.items() if isinstance(value, paddle.Tensor)}
        scalars = {name: value for name, value in arguments.items() if name not in tensors}

        def program(tensors: dict[str, Any]) -> Any:
            return function(**tensors, **scalars)

        # Nothing in it depends on a tensor's value: Paddle need not rewrite its source, a sixth of the time on cpu.
        graph = paddle.jit.to_static(paddle.jit.not_to_static(program), full_graph=True)
        _traced.append(graph)
        return graph(tensors)

    return call


def _listed(value: Any) -> Iterable[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]
