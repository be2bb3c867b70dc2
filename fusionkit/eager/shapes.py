"""Paddle broadcasts where a spec does not, and a remembered decision lets other shapes through to the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

from fusionkit.errors import argument_error


def require_shape(op: str, argument: str, tensor: Any, shape: Sequence[int]) -> None:
    """A traced value is left alone: its shape may hold -1, and the core has looked at it.

    Raises:
        ValueError: the tensor has another shape.
    """
    if isinstance(tensor, paddle.Tensor) and list(tensor.shape) != list(shape):
        raise argument_error(op, argument, f"of shape {list(shape)}", list(tensor.shape))
