"""What NVIDIA cards need, told without loading CUDA. A machine without a card has nothing to mend."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

from fusionkit import extras, pci
from fusionkit.backend import Check
from fusionkit.frameworks.paddle_build import built_for

NVIDIA, DISPLAY = 0x10DE, 0x03
TORCH_FIX = extras.command("gpu")
PADDLE_FIX = "pip install paddlepaddle-gpu==3.3.1 (from Paddle's own index, for your CUDA)"


def unavailable() -> str | None:
    """Neither framework can reach a card."""
    paddle = paddle_unavailable()
    if paddle is None:
        return None
    torch = torch_unavailable()
    return torch and f"{paddle}; {torch}"


def torch_unavailable() -> str | None:
    """Without an import where PyTorch's own version file rules it out."""
    missing = torch_incomplete()
    if missing is not None:
        return missing
    import torch

    return None if torch.cuda.is_available() else "PyTorch finds no NVIDIA card"


def torch_incomplete() -> str | None:
    """What of PyTorch for CUDA and Triton is not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return f"PyTorch is not installed: {TORCH_FIX}"
    version = Path(spec.origin).with_name("version.py")
    if not version.exists() or not re.search(r"^cuda\b[^=]*=\s*'", version.read_text(), re.MULTILINE):
        return "the installed PyTorch is not built for CUDA"
    return None if importlib.util.find_spec("triton") else f"Triton is not installed: {TORCH_FIX}"


def paddle_unavailable() -> str | None:
    if built_for("cuda_version") is None:
        return "the installed Paddle is not built for CUDA"
    import paddle

    return None if paddle.device.cuda.device_count() else "Paddle finds no NVIDIA card"


def checks() -> list[Check]:
    cards, cuda = pci.cards(NVIDIA, classes=(DISPLAY,)), built_for("cuda_version")
    if not cards:
        return [Check("NVIDIA card", True, "none, so nothing is to be mended")]
    tool, torch = shutil.which("nvidia-smi"), torch_incomplete()
    either = cuda is not None or torch is None  # one framework is enough
    return [
        Check("NVIDIA card", True, f"{len(cards)}"),
        Check("driver", tool is not None, tool or "nvidia-smi is not on PATH", "install NVIDIA's driver"),
        Check("Paddle", either, f"built for CUDA {cuda}" if cuda else "not built for CUDA", PADDLE_FIX),
        Check("PyTorch", either, torch or "built for CUDA, with Triton", TORCH_FIX),
    ]
