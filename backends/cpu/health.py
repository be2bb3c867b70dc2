"""Whether the native code is there and fits the installed Paddle: told without loading either, or tried for doctor."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from fusionkit.attempt import tried
from fusionkit.backend import Check
from fusionkit.extras import REBUILD

LIBRARY_DIR = Path(__file__).parent / "lib"
NATIVE, NO_PADDLE = "native library", "not installed: NumPy arrays only"
# Each runs a kernel on a few numbers and prints what was used.
NUMPY_CALL = """
import numpy as np
import fusionkit as fk
from fusionkit_backends.cpu import runtime

x, weight = np.ones((2, 64), np.float32), np.ones((64, 48), np.float32)
with fk.use_backend("cpu"):
    assert (fk.fused_linear(x, weight) == 64).all()
native = runtime.native()
if runtime._paddle_libs() and not native.has_onednn():
    raise RuntimeError("the oneDNN in Paddle's folder cannot be used. Install Paddle again")
refused = f"; not amx: {reason}" if (reason := native.refused_isas()) else ""
print(f"runs with {native.isa()} on {native.num_threads()} threads, products by {native.matmul_library()}{refused}")
"""
# Beside a card Paddle makes tensors there, if it is not told otherwise.
PADDLE_CALL = """
import paddle
import fusionkit as fk

paddle.set_device("cpu")
x = paddle.ones([2, 64])
with fk.use_backend("cpu"):
    assert (fk.fused_linear(x, paddle.ones([64, 48])).numpy() == 64).all()
print(f"{paddle.version.full_version}, as built for; its tensors reach the kernels")
"""


def unavailable() -> str | None:
    """The reason why no kernel can run, or None."""
    failed = [check for check in checks() if not check.passed]
    return f"{failed[0].found}. Run: {failed[0].fix}" if failed else None


def checks() -> list[Check]:
    built = (LIBRARY_DIR / "build_info.json").exists()
    found = "built" if built else f"{LIBRARY_DIR} holds no native library"
    native = Check(NATIVE, built, found, REBUILD)
    return [native, _paddle_check()] if built else [native]


def doctor() -> list[Check]:
    """As `checks`, and what these find is tried."""
    return [_tried(check) for check in checks()]


def _tried(check: Check) -> Check:
    if not check.passed or check.found == NO_PADDLE:
        return check
    return tried(check.name, NUMPY_CALL if check.name == NATIVE else PADDLE_CALL, REBUILD)


def build_info() -> dict[str, object]:
    info: dict[str, object] = json.loads((LIBRARY_DIR / "build_info.json").read_text())
    return info


def _paddle_check() -> Check:
    """A library of custom ops built against another Paddle crashes inside it: it must not be loaded."""
    built_for = build_info()["paddle_version"]
    try:
        installed = importlib.metadata.version("paddlepaddle")
    except importlib.metadata.PackageNotFoundError:
        return Check("Paddle", True, NO_PADDLE)
    if built_for == installed:
        return Check("Paddle", True, f"{installed}, as built for")
    found = f"the native library was built for Paddle {built_for}, installed is Paddle {installed}"
    return Check("Paddle", False, found, REBUILD)
