"""Plugins of Paddle's custom devices: their libraries, and the custom ops inside them.

Paddle loads a plugin's device by itself; the custom ops in the same library must be registered, once a process.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

from fusionkit import extras


def plugin_folder() -> Path | None:
    """Where Paddle looks for plugins: CUSTOM_DEVICE_ROOT, else paddle_custom_device beside Paddle's own package."""
    if root := os.environ.get("CUSTOM_DEVICE_ROOT"):
        return Path(root)
    spec = importlib.util.find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]).with_name("paddle_custom_device")


def libraries() -> list[Path]:
    folder = plugin_folder()
    return sorted(folder.glob("*.so")) if folder else []


def missing(device_type: str) -> str | None:
    """Why Paddle has no device of this type, or not its custom ops; None if both are there."""
    return missing_device(device_type) or register_ops()


def missing_device(device_type: str) -> str | None:
    """Why Paddle has no device of this type, or None. Imports Paddle only if there is a plugin."""
    folder = plugin_folder()
    if folder is None:
        return f"Paddle is not installed: {extras.command('paddle')}"
    if not libraries():
        return f"Paddle has no device {device_type}: {folder} holds no plugin"
    found = present()
    if device_type not in found:
        given = ", ".join(sorted(found)) or "no device"
        return f"Paddle has no device {device_type}: the plugins in {folder} give {given}"
    return None


def present() -> set[str]:
    """The types of the devices that Paddle's plugins give here. Imports Paddle only if there is a plugin."""
    if not libraries():
        return set()
    import paddle

    return {name.partition(":")[0] for name in paddle.device.get_available_custom_device()}


@functools.cache
def register_ops() -> str | None:
    """Register the custom ops of every plugin with Paddle, once. The reason of a failure, or None."""
    from paddle.utils.cpp_extension.extension_utils import load_op_meta_info_and_register_op

    for library in libraries():
        try:
            load_op_meta_info_and_register_op(str(library))
        except (RuntimeError, OSError, ValueError) as error:
            return f"the custom ops of {library} cannot be registered: {type(error).__name__}: {error}"
    return None


def argument_counts(op: str) -> tuple[int, int] | None:
    """(inputs, attributes) of a custom op as it was registered; None if there is no such op."""
    from paddle.base.framework import OpProtoHolder
    from paddle.utils.cpp_extension.extension_utils import parse_op_info

    if op not in OpProtoHolder.instance().op_proto_map:
        return None
    inputs, attributes, _ = parse_op_info(op)
    return len(inputs), len(attributes)


def missing_op(op: str, *known: tuple[int, int]) -> str | None:
    """Why a custom op cannot be called: not registered, or with other numbers of (inputs, attributes) than known."""
    counts = argument_counts(op)
    if counts is None:
        return f"the plugin has registered no op {op}"
    if counts in known:
        return None
    wanted = " or ".join(f"{inputs} inputs and {attributes} attributes" for inputs, attributes in known)
    return f"{op} must take {wanted}, and the plugin's takes {counts[0]} and {counts[1]}"


def run(op: str, inputs: tuple[Any, ...], *attributes: Any) -> list[Any]:
    """Run a custom op, or record it in a static program: inputs in order (None for an absent one), then attributes."""
    import paddle

    if paddle.in_dynamic_mode() and not paddle.is_grad_enabled():
        # Paddle 3.3 records a custom op's gradient under no_grad too, and would keep what it saves.
        inputs = tuple(t if t is None or t.stop_gradient else t.detach() for t in inputs)
    outputs = paddle._C_ops._run_custom_op(op, *inputs, *attributes)
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
