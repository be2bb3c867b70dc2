"""The backend whose Paddle functions are the device-neutral custom ops."""

from __future__ import annotations

from fusionkit import kernel_function, registry
from fusionkit.backend import Backend
from fusionkit.errors import PluginError

PREFIX = "fusionkit_"  # of a neutral op's name


def backend() -> Backend:
    """The one that declares `neutral_ops`.

    Raises:
        PluginError: none is available; each one's reason is given.
    """
    declaring = [backend for backend in registry.loaded() if backend.neutral_ops is not None]
    for candidate in declaring:
        if registry.unavailable(candidate) is None:
            return candidate
    reasons = [f"  {status}" for status in registry.backends()]
    raise PluginError("\n".join(["passes: no backend offers the neutral ops", *reasons, "Run: fusionkit doctor"]))


def load() -> Backend:
    """Register the ops with Paddle, and return the backend that they belong to. A second call does nothing more."""
    chosen = backend()
    kernel_function.resolve(str(chosen.neutral_ops))()
    return chosen
