"""Paddle's own operations in exported programs, called one by one. Sizes read at run time are Python numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle.nn import functional as F

from fusionkit.errors import FusionkitError


def add(x: Any, y: Any) -> Any:
    return x + y


def cast(x: Any, *, dtype: str) -> Any:
    return x.cast(dtype)


def combine(*parts: Any) -> list[Any]:
    return list(parts)


def concat(parts: list[Any], axis: float) -> Any:
    return paddle.concat(parts, int(axis))


def embedding(ids: Any, weight: Any, **attributes: Any) -> Any:
    return F.embedding(ids, weight)


def flatten(x: Any, *, start_axis: int, stop_axis: int) -> Any:
    return x.flatten(start_axis, stop_axis)


def gather(x: Any, index: Any, axis: float = 0) -> Any:
    return paddle.gather(x, index, int(axis))


def reshape(x: Any, shape: list[int]) -> Any:
    return x.reshape(shape)


def shape64(x: Any) -> list[int]:
    return list(x.shape)


def slice(sizes: list[int], starts: list[int], ends: list[int], **attributes: Any) -> Any:
    """One of the sizes, which is what exported programs ask for."""
    if not isinstance(sizes, list) or attributes["decrease_axis"] != [0]:
        rule = "of a shape, to one of its sizes"
        raise FusionkitError(f"passes: a slice must be {rule}, got one of a tensor. Use the tensor's own op instead")
    return sizes[starts[0]]


def split(x: Any, sections: list[int], axis: float) -> Any:
    return paddle.split(x, sections, int(axis))


def split_with_num(x: Any, axis: float, *, num: int) -> Any:
    return paddle.split(x, num, int(axis))


def squeeze(x: Any, axes: list[int]) -> Any:
    return x.squeeze(axes)


def stack(parts: list[Any], *, axis: int) -> Any:
    sizes = all(isinstance(part, int | float) for part in parts)
    return [int(part) for part in parts] if sizes else paddle.stack(parts, axis)


def transpose(x: Any, *, perm: list[int]) -> Any:
    return x.transpose(perm)


def unsqueeze(x: Any, axes: list[int]) -> Any:
    return x.unsqueeze(axes)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        add, cast, combine, concat, embedding, flatten, gather, reshape, shape64, slice, split, split_with_num, squeeze,
        stack, transpose, unsqueeze,
    )
}  # fmt: skip
