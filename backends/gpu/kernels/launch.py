"""The one way a kernel is launched, so that every launch can be recorded instead of run.

Recording serves `warmup` and the tests that compile ahead of time: they see the very calls that the ops make.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton import knobs
from triton.runtime import driver

MOST_PROGRAMS = 65535  # along the second and third axis of a grid, CUDA C++ Programming Guide, compute capabilities
INTERPRETED = knobs.runtime.interpret  # the kernels run on the CPU, over tensors in host memory


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded: the kernel, its arguments in order, constants and options by name."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


class _Recording(threading.local):
    """Of the thread that asked for it: the launches of others run meanwhile."""

    launches: list[Launch] | None = None


_recording = _Recording()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run the kernel on the device of the first argument, on its current stream.

    Args:
        kernel: a `triton.jit` function.
        grid: programs along up to three axes, the second and third at most 65535; with a 0 nothing is launched.
        *arguments: in the kernel's order; tensors, numbers, None, and named tuples of these.
        **constants: `tl.constexpr` parameters, and num_warps, num_stages.

    Raises:
        ValueError: the tensors are on different devices, or the grid is too large for a card.
    """
    if max(grid[1:], default=0) > MOST_PROGRAMS:
        raise ValueError(
            f"{kernel.__name__}: grid {grid}, and a card takes {MOST_PROGRAMS} programs along axes 1 and 2"
        )
    if _recording.launches is not None:
        _recording.launches.append(Launch(kernel, arguments, constants))
        return
    if 0 in grid:
        return
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    active = driver.active
    here, there = active.get_current_device(), _device(arguments)
    if here == there:
        kernel[grid](*arguments, **constants)
        return
    active.set_current_device(there)
    try:
        kernel[grid](*arguments, **constants)
    finally:
        active.set_current_device(here)


def _device(arguments: tuple[Any, ...]) -> int:
    """The card of all tensors. Triton looks at none of the pointers after a program's first launch."""
    there, *others = dict.fromkeys(int(tensor.get_device()) for tensor in _tensors(arguments))
    if others:
        raise ValueError(f"all tensors must be on one card, got cards {there} and {others[0]}")
    return there


def _tensors(arguments: tuple[Any, ...]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _tensors(argument)
        elif hasattr(argument, "get_device"):
            yield argument


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """This thread's launches are appended to the list and not run: gradients must be taken in it as well."""
    before, made = _recording.launches, list[Launch]()
    _recording.launches = made
    try:
        yield made
    finally:
        _recording.launches = before


def is_recording() -> bool:
    """Whether this thread's launches are recorded."""
    return _recording.launches is not None
