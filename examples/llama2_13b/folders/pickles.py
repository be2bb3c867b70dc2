"""Weights in Python's pickle format: a file that runs whatever code is in it. It is refused with what converts it."""

from __future__ import annotations

import shlex
from pathlib import Path

TORCH, PADDLE = ("pytorch_model*.bin", "*.pt", "*.pth"), ("*.pdparams",)
# {files} is a list and {output} a path, as Python writes them. Tied tensors share memory, which safetensors refuses.
TORCH_CODE = (
    "import torch; from safetensors.torch import save_file; save_file({{name: value.contiguous().clone() "
    "for file in {files} for name, value in torch.load(file, map_location='cpu', weights_only=True).items()}}, "
    "{output}, metadata={{'format': 'pt'}})"
)
# Paddle's linear weights are [in_features, out_features], which the format np stands for.
PADDLE_CODE = (
    "import paddle; from safetensors.numpy import save_file; save_file({{name: value.cast('float32').numpy() "
    "for file in {files} for name, value in paddle.load(file).items() if hasattr(value, 'cast')}}, "
    "{output}, metadata={{'format': 'np'}})"
)


def refuse(source: Path) -> None:
    """Name the pickles that a path means: itself, or those in a folder.

    Raises:
        ValueError: there are some. The text has the command that writes `model.safetensors` beside them.
    """
    for patterns, code, caution in ((TORCH, TORCH_CODE, ""), (PADDLE, PADDLE_CODE, ", if you trust them")):
        files = (
            [source] if source.is_file() else [path for pattern in patterns for path in sorted(source.glob(pattern))]
        )
        files = [path for path in files if any(path.match(pattern) for pattern in patterns)]
        if files:
            output = files[0].with_name("model.safetensors")
            command = shlex.quote(code.format(files=[str(path) for path in files], output=repr(str(output))))
            names = ", ".join(path.name for path in files)
            raise ValueError(
                f"{source}: weights must be in safetensors or GGUF, got {names}: pickles, which run the code in them. "
                f"Convert them{caution}: python -c {command}"
            )
