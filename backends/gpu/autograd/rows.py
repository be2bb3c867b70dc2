"""Tensors as the kernels take them: rows and columns."""

from __future__ import annotations

import math
from typing import Any

import torch


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """[rows, last axis], of the same memory where the strides allow it, else of a copy."""
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def as_long_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """For work element by element: one row where all are contiguous, whatever their shape, else `as_rows`."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(1, -1) for tensor in tensors]
    return [as_rows(tensor) for tensor in tensors]


def require_shape(tensor: torch.Tensor, shape: Any, name: str) -> None:
    """A call that comes by a remembered decision; the core turns this into the spec's error."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
