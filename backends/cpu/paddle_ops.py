"""Paddle's device-neutral custom ops `fusionkit_<op>`: loads their library, once, and runs them.

`load` comes before a program that holds them is loaded, by `paddle.jit.load` or by `paddle.inference.create_predictor`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from fusionkit_backends.cpu import health, paddle_gradients, runtime

LIBRARY = health.LIBRARY_DIR / "libfusionkit_paddle.so"

_lock = threading.RLock()  # `paddle_gradients` runs the ops while their library is being loaded
_registered = _connecting = _ready = False
_run_custom_op: Callable[..., Any]
_is_grad_enabled: Callable[[], bool]
_in_dynamic_mode: Callable[[], bool]


def load() -> None:
    """Register the custom ops with Paddle and connect their gradients. A second call does nothing, or what an
    interrupted one left to do.

    Raises:
        RuntimeError: the library was built for another Paddle, or for none.
    """
    global _connecting, _ready
    with _lock:
        if _ready or _connecting:  # by this thread: `paddle_gradients` runs the ops
            return
        if not _registered:
            _register()
        _connecting = True
        try:
            paddle_gradients.connect()
            _ready = True
        finally:
            _connecting = False


def _register() -> None:
    global _registered, _run_custom_op, _is_grad_enabled, _in_dynamic_mode
    import paddle
    from paddle.utils.cpp_extension.extension_utils import load_op_meta_info_and_register_op

    _require_built_for(paddle.version.full_version)
    runtime.native()
    _is_grad_enabled, _in_dynamic_mode = paddle.is_grad_enabled, paddle.in_dynamic_mode
    _run_custom_op = paddle._C_ops._run_custom_op
    load_op_meta_info_and_register_op(str(LIBRARY))
    _registered = True


def _require_built_for(installed: str) -> None:
    """A library built for another Paddle would crash inside it, so it is told from the stamp of the build."""
    built_for = health.build_info()["paddle_version"]
    if built_for != installed:
        origin = f"for Paddle {built_for}" if built_for else "without Paddle"
        raise RuntimeError(f"{LIBRARY.name} was built {origin}, and this is Paddle {installed}. Run: {health.REBUILD}")


def inputs(*tensors: Any) -> Sequence[Any]:
    """The tensors as they enter a custom op (None for an absent one). Loads the library at the first call."""
    if not _ready:
        load()
    # Paddle 3.3 records a custom op's gradient under no_grad too, and would keep what it saves.
    if _is_grad_enabled() or not _in_dynamic_mode():
        return tensors
    return [t if t is None or t.stop_gradient else t.detach() for t in tensors]


def run(op: str, *arguments: Any) -> Any:
    """Run a custom op on `inputs(...)` and attributes in dynamic mode, or record it in a static program."""
    return _run_custom_op(op, *arguments)
