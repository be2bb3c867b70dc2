"""PyTorch tensors, for kernels that say they take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fusionkit.spec import OpSpec, TensorSpec

NAME = "torch"


def owns(kind: type) -> bool:
    return issubclass(kind, torch.Tensor)


def describe(tensor: Any) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(tuple(tensor.shape), dtype, str(tensor.device), tensor.is_contiguous())


def current_device() -> str:
    return str(torch.get_default_device())


def wants_gradient(tensors: list[Any]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_symbolic(tensor: Any) -> bool:
    return False


def place_of(tensor: Any) -> object:
    return tensor.device


def autocast() -> object | None:
    """torch.autocast is not applied to fused ops: the caller casts."""
    return None


def cast_for(state: Any, spec: OpSpec, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return dict(tensors)
