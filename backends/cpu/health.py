"""Whether the native code is there and fits the installed Paddle, told without loading either."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from fusionkit.backend import Check

LIBRARY_DIR = Path(__file__).parent / "lib"
REBUILD = "pip install --force-reinstall --no-deps --no-build-isolation . (in fusionkit's source folder)"


def unavailable() -> str | None:
    """The reason why no kernel can run, or None."""
    failed = [check for check in checks() if not check.passed]
    return f"{failed[0].found}. Run: {failed[0].fix}" if failed else None


def checks() -> list[Check]:
    built = (LIBRARY_DIR / "build_info.json").exists()
    found = "built" if built else f"{LIBRARY_DIR} holds no native library"
    native = Check("native library", built, found, REBUILD)
    return [native, _paddle_check()] if built else [native]


def build_info() -> dict[str, object]:
    info: dict[str, object] = json.loads((LIBRARY_DIR / "build_info.json").read_text())
    return info


def _paddle_check() -> Check:
    """A library of custom ops built against another Paddle crashes inside it: it must not be loaded."""
    built_for = build_info()["paddle_version"]
    try:
        installed = importlib.metadata.version("paddlepaddle")
    except importlib.metadata.PackageNotFoundError:
        return Check("Paddle", True, "not installed: NumPy arrays only")
    if built_for == installed:
        return Check("Paddle", True, f"{installed}, as built for")
    found = f"the native library was built for Paddle {built_for}, installed is Paddle {installed}"
    return Check("Paddle", False, found, REBUILD)
