"""The checkpoints of a run: at most one is being written, perhaps while the next steps run; the oldest are removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.train import training_state
from examples.llama2_13b.train.optimizer import AdamW
from examples.llama2_13b.train.training_flags import TrainingFlags


class Checkpoints:
    """Of one run; the arguments are those of `Trainer`."""

    def __init__(
        self, flags: TrainingFlags, mesh: Mesh, model: Llama, optimizer: AdamW, files: Mapping[str, bytes]
    ) -> None:
        self._output, self._flags, self._mesh = Path(flags.output_dir), flags, mesh
        self._model, self._optimizer, self._files = model, optimizer, files
        self._saving: training_state.Saving | None = None
        self._copied = 0  # bytes of the last one that were in host memory

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """All processes that hold a part of the state call this; with --async_save it is whole after `finish`."""
        self.finish()
        in_background, is_told = self._flags.async_save, self._copied > 0
        folder = self._output / f"checkpoint-{step}"
        self._saving = training_state.Saving(
            folder, self._mesh, self._model, self._optimizer, self._files, state, in_background
        )
        self._copied = self._saving.num_bytes
        if in_background and self._mesh.is_first and not is_told:
            say(f"checkpoints: {self._copied / 1e6:.0f} MB of this process are copied to host memory first")
        self.finish(wait=not in_background)

    def finish(self, wait: bool = True) -> None:
        """The one that is being written, if there is one and it is written or `wait`; then remove the oldest."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        if not saving.finish(wait):
            self._saving = saving
        elif self._flags.save_total_limit is not None and self._mesh.is_first:
            training_state.keep_newest(self._output, self._flags.save_total_limit)

    def give_up(self, error: BaseException) -> None:
        """A gradient that is not finite is so on all processes: together they finish the checkpoint before it."""
        if isinstance(error, FloatingPointError):
            self.finish()
        elif self._saving is not None:
            self._saving.discard()
