"""Paddle's tensors in Triton kernels: Triton asks PyTorch for the device and the stream, and Paddle 3.3 answers in its
place. From then on Triton serves Paddle in this process."""

from __future__ import annotations

import functools
import importlib.util

from fusionkit_backends.gpu import health

from fusionkit import extras


def unavailable() -> str | None:
    missing = health.paddle_unavailable()
    if missing is None and importlib.util.find_spec("triton") is None:
        return f"Triton is not installed: {extras.command('gpu')}"
    return missing


@functools.cache
def enable() -> None:
    """Once a process, before Triton looks for a device."""
    import paddle

    paddle.enable_compat(scope={"triton"})
