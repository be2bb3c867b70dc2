"""A call with and without its gradients, in the flavours that are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fusionkit_backends.gpu.benchmark.setting import Setting

Call = Callable[[], Any]
FORWARD, BOTH = "forward", "forward + backward"


def without_gradients(call: Call) -> Call:
    def forward() -> Any:
        with torch.no_grad():
            return call()

    return forward


def with_gradients(call: Call, wanted: list[Any], grads: list[Any]) -> Call:
    """grads: those of the outputs, made beforehand. Leaves do not accumulate: that would be one more pass."""

    def both() -> Any:
        made = call()
        outputs = list(made) if isinstance(made, tuple) else [made]
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=False) if o.requires_grad]
        return torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs])

    return both


def directions(calls: dict[str, tuple[Call, list[Any]]], grads: list[Any]) -> dict[str, dict[str, Call]]:
    """direction -> contestant -> call. `calls`: contestant -> (call, the inputs that get gradients)."""
    return {
        FORWARD: {name: without_gradients(call) for name, (call, _) in calls.items()},
        BOTH: {name: with_gradients(call, wanted, grads) for name, (call, wanted) in calls.items()},
    }


def compiled(setting: Setting, call: Call) -> dict[str, Call]:
    """{"torch.compile": call}, or nothing in a dry run."""
    return {"torch.compile": torch.compile(call)} if setting.with_compile else {}


def copy_of(num_bytes: float, device: str) -> Call:
    """The card's copy that moves as many bytes, half read and half written."""
    source = torch.randint(0, 127, (max(16, int(num_bytes) // 2),), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def product(setting: Setting, rows: int, inner: int, columns: int) -> tuple[Call, float]:
    """The library's matrix product, and its operations."""
    a, b = setting.randn(rows, inner), setting.randn(inner, columns)
    out = torch.empty(rows, columns, dtype=a.dtype, device=a.device)
    return lambda: torch.mm(a, b, out=out), 2.0 * rows * inner * columns


def square_product(setting: Setting) -> tuple[Call, float]:
    """The card's matrix product rate is taken where it is best known: 8192 cubed."""
    size = 64 if setting.dry_run else 8192
    return product(setting, size, size, size)
