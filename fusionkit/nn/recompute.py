"""Activation recomputation that keeps its choice of backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddle.distributed.fleet.utils import recompute as paddle_recompute

from fusionkit.policy import captured


def recompute(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, whose intermediate values are not kept but computed again for the gradient.

    The second run goes to the backends that the first one went to, also when the surrounding `use_backend` was left
    before `backward()`. Another kernel's forward pass would not be the one that was differentiated.

    Args:
        function: of tensors to a tensor or a tuple of tensors; random numbers are drawn again alike.
        *args: its arguments; only they and the function's parameters receive gradients.
    """
    policy = captured()

    def under_policy(*inputs: Any) -> Any:
        with policy:
            return function(*inputs)

    return paddle_recompute(under_policy, *args)
