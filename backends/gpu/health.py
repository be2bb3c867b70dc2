"""What NVIDIA cards need, told without loading CUDA. A machine without a card has nothing to mend."""

from __future__ import annotations

import shutil

from fusionkit import pci
from fusionkit.backend import Check
from fusionkit.frameworks.paddle_build import built_for

NVIDIA, DISPLAY = 0x10DE, 0x03
PADDLE_FIX = "pip install paddlepaddle-gpu==3.3.1 (from Paddle's own index, for your CUDA)"


def unavailable() -> str | None:
    if built_for("cuda_version") is None:
        return "the installed Paddle is not built for CUDA"
    import paddle

    return None if paddle.device.cuda.device_count() else "Paddle finds no NVIDIA card"


def checks() -> list[Check]:
    cards, cuda = pci.cards(NVIDIA, classes=(DISPLAY,)), built_for("cuda_version")
    if not cards:
        return [Check("NVIDIA card", True, "none, so nothing is to be mended")]
    tool = shutil.which("nvidia-smi")
    return [
        Check("NVIDIA card", True, f"{len(cards)}"),
        Check("driver", tool is not None, tool or "nvidia-smi is not on PATH", "install NVIDIA's driver"),
        Check("Paddle", cuda is not None, f"built for CUDA {cuda}" if cuda else "not built for CUDA", PADDLE_FIX),
    ]
