"""Where the benchmark runs, and the sizes: Llama 2 13B's on a card, a few elements in the interpreter."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """dry_run: on the CPU in Triton's interpreter, to show that the script works; its times say nothing."""

    dry_run: bool
    num_rounds: int
    with_compile: bool
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    tokens: int = 16384  # of an attention call: the batch is tokens // length
    hidden: int = 5120
    intermediate: int = 13824
    heads: int = 40
    head_dim: int = 128
    vocab: int = 32000
    layers: int = 3
    device: str = "cuda"
    dtype: Any = field(default=torch.bfloat16)

    def randn(self, *shape: int, grad: bool = False, dtype: Any = None) -> Any:
        made = torch.randn(shape, device=self.device, dtype=dtype or self.dtype)
        return made.requires_grad_(grad)


def on_card(num_rounds: int, with_compile: bool, lengths: list[int] | None) -> Setting:
    made = Setting(False, num_rounds, with_compile)
    return replace(made, lengths=tuple(lengths)) if lengths else made


def dry() -> Setting:
    return Setting(
        dry_run=True,
        num_rounds=1,
        with_compile=False,
        lengths=(8,),
        tokens=8,
        hidden=32,
        intermediate=48,
        heads=2,
        head_dim=16,
        vocab=40,
        layers=1,
        device="cpu",
        dtype=torch.float32,
    )


def machine(setting: Setting) -> dict[str, str]:
    """What figures are worth nothing without."""
    found = {"torch": torch.__version__, "triton": _version("triton"), "liger_kernel": _version("liger_kernel")}
    if setting.dry_run:
        return {"card": "none: interpreted on the CPU, times mean nothing", **found}
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    return {
        "card": f"{properties.name}, {properties.multi_processor_count} multiprocessors, sm {capability}",
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        **found,
    }


def _version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return "not installed"
    return str(getattr(importlib.import_module(package), "__version__", "installed"))
