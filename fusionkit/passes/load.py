"""Loads static programs that hold neutral ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionkit.passes import neutral


def load_neutral_ops() -> None:
    """Register the neutral ops with Paddle: needed before `paddle.jit.load` or `paddle.inference.create_predictor`.

    Raises:
        PluginError: no backend that is available offers them.
    """
    neutral.load()


def create_predictor(path: str | Path) -> Any:
    """The program `path.json` with the parameters `path.pdiparams`, as a `paddle.inference.Predictor` on the host.

    `predictor.run(list of tensors)` neither copies its inputs nor returns before they are written in place.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: one is truncated or not what its name says.
        PluginError: no backend that is available offers the neutral ops.
    """
    files = Path(f"{path}.json"), Path(f"{path}.pdiparams")
    for file in files:
        if not file.is_file() or file.stat().st_size == 0:  # Paddle 3.3 would compute with unset parameters
            state = "empty" if file.is_file() else "not found"
            raise FileNotFoundError(f"{file}: {state}; a program is a .json and a .pdiparams. Export it again")
    load_neutral_ops()
    import paddle.inference

    config = paddle.inference.Config(*map(str, files))
    config.disable_glog_info()
    try:
        return paddle.inference.create_predictor(config)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path}: the program cannot be loaded: {reason}; .json or .pdiparams is truncated, or they do not belong "
            "together. Export it again"
        ) from error
