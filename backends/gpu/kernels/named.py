"""Launches with every argument by name: the attention kernels have twenty."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any

from fusionkit_backends.gpu.kernels.launch import launch


def launch_named(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """As `launch`. The kernel's constants are the parameters in capitals."""
    ordered = [arguments.pop(name) for name in _run_time_names(kernel)]
    launch(kernel, grid, *ordered, **arguments)


@cache
def _run_time_names(kernel: Any) -> tuple[str, ...]:
    return tuple(name for name in signature(kernel.fn).parameters if name.islower())
