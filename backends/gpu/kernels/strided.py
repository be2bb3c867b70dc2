"""Tensors with their strides, as the kernels of rows take them: Triton takes a NamedTuple as one argument.

Sizes that change from call to call stay arguments of their own: in a tuple each new value could compile a program.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Matrix(NamedTuple):
    """A tensor [rows, columns]: its address and its strides."""

    at: Any
    row: Any
    column: Any


class Vector(NamedTuple):
    """A tensor of one axis: its address and its stride."""

    at: Any
    stride: Any


class StridedHeads(NamedTuple):
    """A tensor [batch_size, seq_len, heads, head_dim]: its address and its strides."""

    at: Any
    batch: Any
    token: Any
    head: Any
    element: Any


def matrix(tensor: Any | None) -> Matrix | None:
    """None stays None: the kernel is compiled without it."""
    return None if tensor is None else Matrix(tensor, *tensor.stride())


def vector(tensor: Any) -> Vector:
    return Vector(tensor, *tensor.stride())


def heads_of(tensor: Any) -> StridedHeads:
    return StridedHeads(tensor, *tensor.stride())
