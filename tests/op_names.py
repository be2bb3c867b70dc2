"""The ops by what their specs say of them."""

from __future__ import annotations

from fusionkit import registry
from fusionkit.ops import OP_NAMES, load_spec

COLLECTIVE_OPS = tuple(name for name in OP_NAMES if load_spec(name).collective)
LOCAL_OPS = tuple(name for name in OP_NAMES if not load_spec(name).collective)


def served_by(backend, framework, names=OP_NAMES):
    """The ops that a backend has a kernel for in a framework."""
    kernels = next(plugin.backend for plugin in registry.plugins() if plugin.name == backend).kernels
    return tuple(name for name in names if name in kernels and framework in kernels[name].functions)


CPU_OPS = served_by("cpu", "numpy")
LOCAL_CPU_OPS = served_by("cpu", "numpy", LOCAL_OPS)
NEUTRAL_OPS = served_by("cpu", "paddle", LOCAL_OPS)  # those that exported programs can hold
