"""Checkpoints of a run: `checkpoint-<step>`, a model folder with what is needed to go on from that step bit by bit."""

from __future__ import annotations

import json
import re
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from examples.llama2_13b.folders import checkpoint, safetensors_folder
from examples.llama2_13b.folders.layout import elements
from examples.llama2_13b.folders.safetensors_writer import BLOCK, Piece
from examples.llama2_13b.io import atomic, crc32
from examples.llama2_13b.io.remarks import beside_the_work
from examples.llama2_13b.io.text import ENCODING
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.writers import Writers
from examples.llama2_13b.train.optimizer import MOMENTS, POWERS, AdamW
from fusionkit.parallel.parts import own_part

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
        checksums: the CRC-32 of every other file, in hexadecimal digits.
        num_steps: of the run that wrote it, from its first to its last; older checkpoints do not know.
    """

    step: int
    data: str
    flags: dict[str, Any]
    optimizer: dict[str, float]
    stored_dtypes: dict[str, str] | None = None
    checksums: dict[str, str] | None = None
    num_steps: int | None = None


class Progress(IntEnum):
    """Of a process that writes its part of a checkpoint."""

    DONE, WRITES, FAILED = range(3)


class _Discarded(Exception):
    pass


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        atomic.write_file(folder / name, content)


class Saving:
    """A checkpoint from its first byte until it has its name: a model folder with tokenizer, moments and state.

    All processes that hold a part of it make one, see `Mesh.holds_state`. The first makes the files, and all fill in
    their own pieces. The files are the same whatever the layout is. Collectives are this thread's alone: the thread in
    the background only writes.

    Args:
        folder: appears in one rename.
        in_background: return when this process's part is copied to host memory; `finish` does the rest. Else the folder
            is whole.

    Raises:
        OSError: the disk is full or the folder cannot be written, for this process or for another.
    """

    def __init__(
        self,
        folder: Path,
        mesh: Mesh,
        model: Llama,
        optimizer: AdamW,
        files: Mapping[str, bytes],
        state: Mapping[str, Any],
        in_background: bool = False,
    ) -> None:
        self._writers, self._model, self._files = mesh.writers, model, files
        self._dtypes = dict.fromkeys(elements(model.saved), "F32")
        self._new_folder = ExitStack()
        self._folder = atomic.temporary_of(folder)
        self.is_finished, self.num_bytes = False, 0  # the latter in host memory while the thread writes
        self._is_given_up = False
        if self._writers.is_first:
            scalars = {"optimizer": optimizer.scalars(), "stored_dtypes": model.stored_dtypes}
            self._state = {**state, **scalars}
        with self._removing():
            begin = partial(self._new_folder.enter_context, atomic.new_folder(folder))
            self._writers.together(begin if self._writers.is_first else None, folder)
            self._sets = [(model.new_files(self._folder, self._dtypes, self._writers), self._pieces(optimizer.own()))]
            for moment in MOMENTS:
                new = checkpoint.files(self._folder, moment, model.saved, self._dtypes, self._writers)
                self._sets.append((new, self._pieces(optimizer.moments(moment))))
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        if in_background:
            copies = [(new, list(pieces)) for new, pieces in self._sets]
            self.num_bytes = sum(piece.value.nbytes for _, pieces in copies for piece in pieces)
            self._sets = [*copies]
            self._thread.start()
        else:
            self._write()
            self.finish()

    def _pieces(self, values: dict[str, Any]) -> Iterable[Piece]:
        return checkpoint.pieces(self._model, self._model.saved, values.get, self._dtypes)

    def _write(self) -> None:
        """This process's part. An error waits for `finish`, where the others are told."""
        try:
            for place, (new, pieces) in enumerate(self._sets):
                new.write(self._until_given_up(pieces))
                self._sets[place] = new, ()
        except BaseException as error:
            self._error = error

    def _until_given_up(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if self._is_given_up:
                raise _Discarded
            yield piece

    @contextmanager
    def _removing(self) -> Iterator[None]:
        """What fails leaves nothing behind."""
        with ExitStack() as kept:
            kept.push(self._new_folder.__exit__)
            yield
            kept.pop_all()

    def finish(self, wait: bool = True) -> bool:
        """Give the folder its name if all processes have written, and return whether it has it. All call this alike.

        Args:
            wait: until they have.

        Raises:
            OSError: as the class.
        """
        if self.is_finished:
            return True
        if wait and self._thread.ident:
            self._thread.join()
        progress = Progress.WRITES if self._thread.is_alive() else Progress.FAILED if self._error else Progress.DONE
        with self._removing():
            everyone = set(self._writers.gather([progress]).flat)
            if Progress.FAILED in everyone:
                raise self._error or OSError(f"{self._folder}: another process could not write its part, and says why")
            if Progress.WRITES in everyone:
                return False
            sums: dict[str, int] = {}
            for new, _ in self._sets:
                sums |= new.finish()
        self._writers.together(partial(self._finish_folder, sums) if self._writers.is_first else None, self._folder)
        self.is_finished = True  # all see it whole
        return True

    def discard(self) -> None:
        """Remove what there is, without the other processes, and without the pieces that are still to be written."""
        self._is_given_up = True
        if self._thread.ident:
            self._thread.join()
        if not self.is_finished:
            with suppress(_Discarded), self._removing():
                raise _Discarded

    def _finish_folder(self, sums: dict[str, int]) -> None:
        """What the first does when all have written."""
        with self._new_folder:
            self._fill_folder(sums)

    def _fill_folder(self, sums: dict[str, int]) -> None:
        write_files(self._folder, self._files)
        (new, _), *moments = self._sets
        self._model.finish_folder(self._folder, new, self._dtypes)
        for moment, (files, _) in zip(MOMENTS, moments, strict=True):
            safetensors_folder.write_index(self._folder, moment, files.weight_map)
        # An adapter's file has another name by now; small files are read again.
        small = [path for path in self._folder.iterdir() if path.name not in sums]
        found = {name: total for name, total in sums.items() if (self._folder / name).exists()}
        found |= {path.name: zlib.crc32(path.read_bytes()) for path in small}
        checksums = {name: f"{found[name]:08x}" for name in sorted(found)}
        content = json.dumps({**self._state, "checksums": checksums}, indent=2) + "\n"
        (self._folder / STATE).write_text(content, encoding="utf-8")


def verify(folder: Path, state: TrainingState, readers: Writers) -> None:
    """Hold every file's bytes against the checksum in the state; each of the readers reads a part of every file.

    Raises:
        ValueError: a file is missing or another; it is named, by all of the readers.
    """
    checksums = state.checksums or {}
    names = sorted(checksums)
    if not names:  # older checkpoints have none
        return
    sums = [_sum_of_part(folder / name, readers.rank, readers.size) for name in names]
    lengths = readers.gather([length for _, length in sums])[0]
    totals = np.bitwise_xor.reduce(readers.gather([total for total, _ in sums]), axis=0)
    for name, total, length in zip(names, totals, lengths, strict=True):
        found = f"{crc32.of_file(int(total), int(length)):08x}"
        if found != checksums[name]:
            rule = f"have the CRC-32 {checksums[name]}, as {STATE} says, got {found}"
            cure = f"Remove {folder} to resume from an older checkpoint"
            raise ValueError(f"{folder / name}: must {rule}; it is not as it was saved. {cure}")


def _sum_of_part(path: Path, rank: int, size: int) -> tuple[int, int]:
    """What a reader's part adds to the sum of a file, and the file's length; 0 for both if there is none."""
    if not path.exists():
        return 0, 0
    length = path.stat().st_size
    part, total = own_part(length, rank, size), 0
    with path.open("rb", buffering=0) as file:
        file.seek(part.start)
        left = part.stop - part.start
        while left and (block := file.read(min(left, BLOCK))):
            total, left = crc32.moved(total, len(block)) ^ crc32.of_part(block), left - len(block)
    return crc32.moved(total, length - part.stop), length


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
    known = {*state.flags, "rows_per_step"}
    if lacking := [name for name, value in flags.items() if value is not None and name not in known]:
        rule = f"one of {command}, got {folder}, whose run had no --{lacking[0]}"
        raise ValueError(f"{command}: the checkpoint must be {rule}. Name another, or start anew")
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


def remove_unfinished(output: Path) -> None:
    """What a killed run was writing: it may be as large as a checkpoint."""
    for path in output.glob(".checkpoint-*.saving"):
        with beside_the_work(f"{path} is not removed"):
            shutil.rmtree(path)


def keep_newest(output: Path, limit: int) -> None:
    for path in checkpoints(output)[:-limit]:
        with beside_the_work(f"{path} is not removed"):  # on NFS a folder that someone reads cannot go
            shutil.rmtree(path)
