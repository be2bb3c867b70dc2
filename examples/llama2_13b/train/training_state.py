"""Checkpoints of a run: `checkpoint-<step>`, a model folder with what is needed to go on from that step bit by bit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.llama2_13b.io import atomic
from examples.llama2_13b.io.remarks import beside_the_work
from examples.llama2_13b.io.text import ENCODING
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.train.optimizer import POWERS, AdamW

STATE = "trainer_state.json"


@dataclass(frozen=True)
class TrainingState:
    """What a run knows beside weights and moments. Random numbers and data order follow from seed and step.

    Args:
        step: steps done.
        data: fingerprint of the training data.
        flags: those that decide data order and losses; a run that resumes must have the same.
        optimizer: the scalars of the optimizer's state.
        stored_dtypes: of the run's first model, for its last one; a checkpoint is float32.
    """

    step: int
    data: str
    flags: dict[str, Any]
    optimizer: dict[str, float]
    stored_dtypes: dict[str, str] | None = None


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        atomic.write_file(folder / name, content)


def save(
    folder: Path, mesh: Mesh, model: Llama, optimizer: AdamW, files: Mapping[str, bytes], state: Mapping[str, Any]
) -> None:
    """Write `folder` in one rename: a model folder with tokenizer, moments and state.

    All processes that hold a part of it call this, see `Mesh.holds_state`; the first writes.
    """
    if not mesh.is_first:
        if mesh.holds_weights:
            model.save_pretrained(folder, "float32")
        optimizer.save(folder)
        return
    with atomic.new_folder(folder) as temporary:
        model.save_pretrained(temporary, "float32")
        write_files(temporary, files)
        scalars = optimizer.save(temporary)
        whole = {**state, "optimizer": scalars, "stored_dtypes": model.stored_dtypes}
        (temporary / STATE).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> TrainingState:
    """The state in a checkpoint.

    Raises:
        FileNotFoundError, ValueError: not a checkpoint of a run.
    """
    try:
        state = TrainingState(**json.loads((folder / STATE).read_text(encoding=ENCODING)))
        if type(state.step) is not int or not isinstance(state.flags, dict) or set(state.optimizer) != set(POWERS):
            raise ValueError(f"step, flags and {', '.join(POWERS)} must be there")
        return state
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder / STATE}: not found; a run's folders checkpoint-<step> have it") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / STATE}: not the state of a run: {error}") from None


def require_same(state: TrainingState, data: str, flags: Mapping[str, Any], folder: Path, command: str) -> None:
    """Refuse to go on with other data, or with flags that would make it another run.

    Raises:
        ValueError: naming the first flag, or the data.
    """
    for name, value in flags.items():
        if name == "rows_per_step":
            _require_rows(state.flags, value, folder, command)
        elif state.flags.get(name) != value:
            rule = f"{state.flags.get(name)!r} as in {folder}"
            advice = "Resume with the same flags, or start anew"
            raise ValueError(f"{command}: --{name} must be {rule}, got {value!r}. {advice}")
    if state.data != data:
        raise ValueError(f"{command}: the training data must be that of {folder}, got other samples. Start a new run")


def _require_rows(saved: Mapping[str, Any], rows: Any, folder: Path, command: str) -> None:
    """The samples of a step follow from the number of its rows. How they are shared out may change."""
    wanted = saved.get("rows_per_step", _rows_of_older(saved))
    if wanted != rows:
        raise ValueError(
            f"{command}: --per_device_train_batch_size x --gradient_accumulation_steps x copies of the model must be "
            f"{wanted} as in {folder}, got {rows}: a step has as many rows. Change one of the three, or start anew"
        )


def _rows_of_older(saved: Mapping[str, Any]) -> Any:
    """Older checkpoints have the factors; the oldest call the copies processes, and one not at all."""
    copies = saved.get("copies", saved.get("processes", 1))
    return saved.get("per_device_train_batch_size", 0) * saved.get("gradient_accumulation_steps", 0) * copies


def checkpoints(output: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def keep_newest(output: Path, limit: int) -> None:
    for path in checkpoints(output)[:-limit]:
        with beside_the_work(f"{path} is not removed"):  # on NFS a folder that someone reads cannot go
            shutil.rmtree(path)
