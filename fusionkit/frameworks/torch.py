"""PyTorch tensors, for kernels that say they take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from fusionkit.dtypes import FLOATING
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.spec import OpSpec, TensorSpec

NAME = "torch"

_DTYPES = {getattr(torch, name): name for name in DTYPES}

_accelerator = torch.accelerator.current_accelerator()
_ACCELERATOR = "cpu" if _accelerator is None else _accelerator.type


def owns(kind: type) -> bool:
    return issubclass(kind, torch.Tensor)


def describe(tensor: Any) -> TensorSpec:
    dtype = _DTYPES.get(tensor.dtype) or str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(tuple(tensor.shape), dtype, str(tensor.device), tensor.is_contiguous())


def current_device() -> str:
    return str(torch.get_default_device())


def knows_device(device_type: str) -> bool:
    """Whether PyTorch has devices of this name."""
    try:
        torch.device(device_type)
    except RuntimeError:
        return False
    return True


def wants_gradient(tensors: list[Any]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_symbolic(tensor: Any) -> bool:
    return False


def place_of(tensor: Any) -> object:
    return tensor.device


def autocast() -> tuple[str, torch.dtype] | None:
    """(device type, low dtype) where `torch.autocast` is on: for the accelerator, else for the host."""
    if torch.is_autocast_enabled(_ACCELERATOR):
        return _ACCELERATOR, torch.get_autocast_dtype(_ACCELERATOR)
    if torch.is_autocast_enabled("cpu"):
        return "cpu", torch.get_autocast_dtype("cpu")
    return None


def cast_for(state: tuple[str, torch.dtype], spec: OpSpec, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Cast floating inputs as the op's class says; master weights, tables, masks and what the op writes stay."""
    device_type, low = state
    dtype = {"low": low, "float32": torch.float32, "keep": None}[spec.amp]
    if dtype is None:
        return dict(tensors)
    return {n: _cast(t, spec, n, dtype) if t.device.type == device_type else t for n, t in tensors.items()}


def _cast(tensor: Any, spec: OpSpec, name: str, dtype: torch.dtype) -> Any:
    declared = spec.input(name)
    master_or_table = "float32" in declared.dtypes and not set(FLOATING) <= set(declared.dtypes)
    if master_or_table or name in spec.mutates or not declared.differentiable:
        return tensor
    return tensor.to(dtype) if _DTYPES.get(tensor.dtype) in FLOATING else tensor


def without_autocast() -> Any:
    """Inside an op whose inputs are cast already, PyTorch must not cast its steps again."""
    state = autocast()
    return torch.autocast(state[0] if state else "cpu", enabled=False)


def from_numpy(array: np.ndarray[Any, Any], device: str) -> Any:
    """A tensor with a copy of the array; PyTorch knows no `ml_dtypes`, so bfloat16 goes as bits."""
    dense = np.array(array, order="C")
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(dense.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(dense).to(device)


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    dense = tensor.detach().cpu().contiguous()
    array: np.ndarray[Any, Any]
    if dense.dtype == torch.bfloat16:
        array = dense.view(torch.int16).numpy().view(DTYPES["bfloat16"])
        return array
    array = dense.numpy()
    return array


def over_tensors(value: Any, device: str) -> Any:
    return from_numpy(value, device) if isinstance(value, np.ndarray) else value


def carried(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The function over NumPy arrays: carried to the device and back, with what it wrote into its arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        arrays = [*args, *kwargs.values()]
        tensors = [over_tensors(value, device) for value in arrays]
        with torch.no_grad():
            result = function(*tensors[: len(args)], **dict(zip(kwargs, tensors[len(args) :], strict=True)))
        for array, tensor in zip(arrays, tensors, strict=True):
            if isinstance(array, np.ndarray):  # a kernel that writes through a pointer leaves no mark on the tensor
                array[...] = to_numpy(tensor)
        return tuple(map(to_numpy, result)) if isinstance(result, tuple | list) else to_numpy(result)

    return call


def vjp(
    function: Callable[..., Any], spec: OpSpec, grad_outputs: Any, device: str, arguments: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, Any] | None]:
    """Gradients of `function` through PyTorch's autograd, NumPy arrays in and out."""
    tensors = {name: over_tensors(value, device) for name, value in arguments.items()}
    wanted = [i.name for i in spec.inputs if i.differentiable and tensors.get(i.name) is not None]
    for name in wanted:
        tensors[name].requires_grad_()
    outputs = _listed(function(**tensors))
    grads = [over_tensors(grad, device) for grad in _listed(grad_outputs)]
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    gradients = {name: tensors[name].grad for name in wanted}
    return {name: None if g is None else to_numpy(g) for name, g in gradients.items()}


def _listed(value: Any) -> Iterable[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]
