"""A run's log in TensorBoard's format, by the library tensorboardX."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from examples.llama2_13b.io.remarks import beside_the_work

LIBRARY = "tensorboardX"


def is_installed() -> bool:
    return find_spec(LIBRARY) is not None


class TensorBoard:
    """Scalars by step: `train/loss`, `eval/loss` and the others of the log. A failure costs nothing but itself.

    Args:
        folder: what `tensorboard --logdir` is given.
        step: done before; TensorBoard drops what an earlier run wrote of later steps.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        with beside_the_work("nothing is written for TensorBoard"):
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None, flush_secs=10)

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of the log."""
        if self._writer is None:
            return
        with beside_the_work("TensorBoard lacks a step"):
            for name, value in line.items():
                if name != "step":
                    self._writer.add_scalar(_tag(name), value, line["step"])

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            with beside_the_work("TensorBoard lacks the last steps"):
                self._writer.close()


def _tag(name: str) -> str:
    """`eval_loss` is `eval/loss`."""
    split, _, rest = name.partition("_")
    return f"{split}/{rest}" if split in ("eval", "test") else f"train/{name}"
