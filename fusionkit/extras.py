"""What is installed only when it is asked for, and the command that installs it."""

from __future__ import annotations

import importlib.util

IN_SOURCE = "(in fusionkit's source folder)"
# Builds the native code for the Paddle that is installed; without isolation the tools must be installed too.
REBUILD = (
    f"pip install setuptools pybind11, then: pip install --force-reinstall --no-deps --no-build-isolation . {IN_SOURCE}"
)
# Package as it is imported -> the extra of ours that brings it.
EXTRAS = {
    "paddle": "paddle",
    "torch": "gpu",
    "triton": "gpu",
    "matplotlib": "bench",
    "pytest_benchmark": "bench",
    "jinja2": "examples",
    "safetensors": "examples",
    "tokenizers": "examples",
}


def missing(*packages: str) -> str | None:
    """The first of the packages that is not installed, with the command that installs it; None if all are there."""
    absent = [package for package in packages if not _is_here(package)]
    return f"{absent[0]} is not installed. Run: {command(EXTRAS[absent[0]])}" if absent else None


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook forbids it
        return False


def command(extra: str) -> str:
    return f"pip install '.[{extra}]' {IN_SOURCE}"
