"""What Kunlun cards need, told without loading their libraries. A machine without a card has nothing to mend."""

from __future__ import annotations

import importlib.util

from fusionkit import pci
from fusionkit.backend import Check
from fusionkit.frameworks.paddle_build import built_for

BAIDU = 0x1D22
PADDLE_FIX = "pip install paddlepaddle-xpu==3.3.1 (from Paddle's own index)"


def unavailable() -> str | None:
    if built_for("xpu_xre_version") is None:
        return "the installed Paddle is not built for XPU"
    import paddle

    return None if paddle.device.xpu.device_count() else "Paddle finds no Kunlun card"


def paddle_xpu_nn_missing() -> str | None:
    """The fused norm is in a package of its own."""
    return None if importlib.util.find_spec("paddle_xpu_nn") else "the package paddle_xpu_nn is not installed"


def checks() -> list[Check]:
    cards, runtime = pci.cards(BAIDU), built_for("xpu_xre_version")
    if not cards:
        return [Check("Kunlun card", True, "none, so nothing is to be mended")]
    missing = paddle_xpu_nn_missing()
    return [
        Check("Kunlun card", True, f"{len(cards)}"),
        Check(
            "Paddle", runtime is not None, f"built for XRE {runtime}" if runtime else "not built for XPU", PADDLE_FIX
        ),
        Check("paddle_xpu_nn", missing is None, missing or "installed", "install the vendor's paddle_xpu package"),
    ]
