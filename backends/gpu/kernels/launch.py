"""The one way a kernel is launched, so that every launch can be recorded instead of run.

Recording serves `warmup` and the tests that compile ahead of time: they see the very calls that the ops make.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton import knobs
from triton.runtime import driver

INTERPRETED = knobs.runtime.interpret  # the kernels run on the CPU, over tensors in host memory


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded: the kernel, its arguments in order, constants and options by name."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


_recorded: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run the kernel on the device of the first argument, on its current stream.

    Args:
        kernel: a `triton.jit` function.
        grid: programs along up to three axes; with a 0 among them nothing is launched.
        *arguments: in the kernel's order; tensors, numbers, None.
        **constants: `tl.constexpr` parameters, and num_warps, num_stages.
    """
    if _recorded is not None:
        _recorded.append(Launch(kernel, arguments, constants))
        return
    if 0 in grid:
        return
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    active = driver.active
    here, there = active.get_current_device(), arguments[0].get_device()
    if here == there:
        kernel[grid](*arguments, **constants)
        return
    active.set_current_device(there)
    try:
        kernel[grid](*arguments, **constants)
    finally:
        active.set_current_device(here)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches inside are appended to the list and not run. For one thread: gradients must be taken in this one."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before
