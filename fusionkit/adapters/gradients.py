"""Autograd for functions of the host or of a device's ops that have none: two PyLayers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddle.autograd import PyLayer


def linear_map(x: Any, forward: Callable[..., Any], transposed: Callable[..., Any], *settings: Any) -> Any:
    """y = forward(x, *settings), linear in x, whose gradient is dx = transposed(dy, *settings). Nothing is saved."""
    return _LinearMap.apply(x, forward, transposed, settings)


def product(
    x: Any,
    weight: Any,
    forward: Callable[[Any, Any], Any],
    backward: Callable[[Any, Any, Any, bool, bool], tuple[Any, Any]],
) -> Any:
    """y = forward(x, weight), whose gradients are dx, dweight = backward(dy, x, weight, wants_dx, wants_dweight).

    x and weight are saved. A gradient that is not wanted may be None; others have the dtypes of x and weight.
    """
    return _Product.apply(x, weight, forward, backward)


class _LinearMap(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, forward: Any, transposed: Any, settings: tuple[Any, ...]) -> Any:
        ctx.transposed, ctx.settings = transposed, settings
        return forward(x, *settings)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return ctx.transposed(dy, *ctx.settings)


class _Product(PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, forward: Any, backward: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.backward_of, ctx.wanted = backward, (not x.stop_gradient, not weight.stop_gradient)
        return forward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight = ctx.saved_tensor()
        return ctx.backward_of(dy, x, weight, *ctx.wanted)
