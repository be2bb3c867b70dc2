"""Loads static programs that hold neutral ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionkit.passes import files, neutral


def load_neutral_ops() -> None:
    """Register the neutral ops with Paddle: needed before `paddle.jit.load` or `paddle.inference.create_predictor`.

    Raises:
        PluginError: no backend that is available offers them.
    """
    neutral.load()


def create_predictor(path: str | Path) -> Any:
    """A program that `export` wrote, as a `paddle.inference.Predictor` on the host.

    `predictor.run(list of tensors)` copies no input: the neutral ops write their in-place arguments where they are.

    Raises:
        FileNotFoundError: one of the program's files is missing.
        ValueError: one is truncated or not what its name says.
        PluginError: no backend that is available offers the neutral ops.
    """
    program, parameters = files.read_whole(path)
    load_neutral_ops()
    import paddle.inference

    config = paddle.inference.Config(str(program), str(parameters or ""))
    config.disable_glog_info()
    try:
        return paddle.inference.create_predictor(config)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: the program cannot be loaded: {reason}. Export it again") from error
