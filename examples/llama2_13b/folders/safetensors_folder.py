"""Named tensors in the safetensors files of a folder, one file or many with an index."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from examples.llama2_13b.folders import pickles, stored_dtypes
from examples.llama2_13b.folders.safetensors_layout import read_layout
from examples.llama2_13b.io import atomic
from examples.llama2_13b.io.text import ENCODING

Array = NDArray[Any]
FLOATING = tuple(stored_dtypes.NUMPY)
MAX_SHARD_BYTES = 5_000_000_000  # what transformers writes
# The program that a file's metadata names decides the layout of a linear weight: PaddleNLP, PaddleMIX and PaddleFormers
# write [in_features, out_features] under these names. Files without a name come from tools around transformers.
OUT_IN, IN_OUT = ("pt", "mlx"), ("np", "pd", "paddle")


class Reader:
    """Opens `prefix.safetensors.index.json`, or `prefix.safetensors` alone. Tensors are read when asked for.

    Raises:
        FileNotFoundError: neither is there, or a file that the index names is missing.
        ValueError: the model is in pickles, a file is truncated or not what its name says, or the files are of two
            saves.
    """

    def __init__(self, folder: str | Path, prefix: str) -> None:
        self.folder, self._prefix = Path(folder), prefix
        index, single = self.folder / f"{prefix}.safetensors.index.json", self.folder / f"{prefix}.safetensors"
        if not index.exists() and not single.exists():
            if prefix == "model":
                pickles.refuse(self.folder)
            advice = "transformers' from_pretrained(folder).save_pretrained(folder) writes them"
            raise FileNotFoundError(f"{self.folder}: neither {index.name} nor {single.name} is there; {advice}")
        weight_map = _weight_map(index) if index.exists() else {}
        files = sorted(set(weight_map.values())) if index.exists() else [single.name]
        if single.exists() and single.name not in files:
            raise ValueError(_two_saves(index, single))
        self.index = index if index.exists() else single
        self._opened = {name: _open(self.folder / name) for name in files}
        self._places = {name: read_layout(self.folder / name) for name in files}
        self._in_out = {name: _is_in_out(self.folder / name, opened) for name, opened in self._opened.items()}
        self._file_of: dict[str, str] = {}
        for name, opened in self._opened.items():
            for tensor in opened.keys():  # noqa: SIM118
                elsewhere = self._file_of.setdefault(tensor, weight_map.get(tensor, name))
                if elsewhere != name:
                    rule = f"only in {elsewhere}, as {self.index.name} says; the files are of two saves"
                    raise ValueError(f"{self.folder / name}: {tensor} must be {rule}. Copy or save the model again")

    def unread(self) -> list[str]:
        """Shards in the folder that are not read: what a killed save left, or another model's."""
        shard = _shard_name(self._prefix)
        return sorted(
            path.name for path in self.folder.iterdir() if shard.fullmatch(path.name) and path.name not in self._opened
        )

    def has(self, name: str) -> bool:
        return name in self._file_of

    def is_in_out(self, name: str) -> bool:
        """Whether the tensor, if it is a linear weight, is stored as [in_features, out_features]."""
        return self.has(name) and self._in_out[self._file_of[name]]

    def digest(self) -> str:
        """Of every tensor's name, shape, dtype and first row: another training of the same model has another."""
        digest = hashlib.sha256()
        for name in sorted(self._file_of):
            stored = self._opened[self._file_of[name]].get_slice(name)
            digest.update(f"{name} {stored.get_shape()} {stored.get_dtype()}".encode())
            digest.update(self._first_row(name))
        return digest.hexdigest()[:16]

    def _first_row(self, name: str) -> bytes:
        """As it is in the file: NumPy has no 8-bit floats of its own."""
        file = self._file_of[name]
        stored = self._places[file][name]
        part = (slice(0, 1), *(slice(0, size) for size in stored.shape[1:]))
        content = bytearray(stored.num_bytes // stored.shape[0])
        _read_runs(self.folder / file, stored.runs(part), memoryview(content))
        return bytes(content)

    def check(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        ignored: Callable[[str], bool] = lambda name: False,
        dtypes: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Require exactly these tensors, of a floating dtype where `dtypes` does not name others.

        Raises:
            ValueError: one is missing, unknown, of another shape or dtype. It is named with its file.
        """
        found = {name for name in self._file_of if not ignored(name)}
        if missing := [name for name in shapes if name not in found]:
            raise ValueError(f"{self.index}: {_some(missing)} must be there, got none; {len(found)} tensors were found")
        if unknown := sorted(found - set(shapes)):
            raise ValueError(f"{self.index}: {_some(unknown)} must not be there; the model has no place for it")
        for name, shape in shapes.items():
            stored = self._opened[self._file_of[name]].get_slice(name)
            where = f"{self.folder / self._file_of[name]}: {name}"
            if tuple(stored.get_shape()) != shape:
                raise ValueError(
                    f"{where} must be {list(shape)}, got {stored.get_shape()}; see config.json{self._layout(name)}"
                )
            wanted = (dtypes or {}).get(name, FLOATING)
            if stored.get_dtype() not in wanted:
                raise ValueError(f"{where} must be {', '.join(wanted)}, got {stored.get_dtype()}")

    def _layout(self, name: str) -> str:
        return " and format in the file's metadata, which stands for [in, out] weights" if self.is_in_out(name) else ""

    def dtype(self, name: str) -> str:
        """That a saved model has."""
        return stored_dtypes.saved_as(str(self._opened[self._file_of[name]].get_slice(name).get_dtype()))

    def read(self, name: str, part: tuple[slice, ...]) -> NDArray[np.float32]:
        """A part of the tensor, a slice for each axis: nothing else of it is read, and nothing mapped into memory."""
        return self.read_as_stored(name, part).astype(np.float32, copy=False)

    def read_as_stored(self, name: str, part: tuple[slice, ...]) -> Array:
        """The same in the file's dtype."""
        file = self._file_of[name]
        stored = self._places[file][name]
        tensor = np.empty([one.stop - one.start for one in part], stored.kind)
        if tensor.size:
            _read_runs(self.folder / file, stored.runs(part), tensor.reshape(-1).view(np.uint8).data)
        return tensor


def _read_runs(path: Path, runs: tuple[int, int, int, int], content: memoryview) -> None:
    """Fill with the bytes of `Stored.runs`."""
    first, num_bytes, step, count = runs
    with path.open("rb", buffering=0) as file:
        for number in range(count):
            run, offset = content[number * num_bytes : (number + 1) * num_bytes], first + number * step
            while run:  # the system may read less than asked for
                num_read = os.preadv(file.fileno(), [run], offset)
                if not num_read:
                    raise OSError(f"{path}: ended while it was read. Copy it again")
                run, offset = run[num_read:], offset + num_read


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file."""
    try:
        weight_map = json.loads(index.read_text(encoding=ENCODING))["weight_map"]
        return {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index}: must be JSON with a weight_map of tensor to file, got {error!r}") from None


def _two_saves(index: Path, single: Path) -> str:
    """transformers would read the second, others the first."""
    written = " and ".join(f"{path.name} ({time.ctime(path.stat().st_mtime)})" for path in (index, single))
    cure = f"Delete {single.name} to keep the shards that the index names, or {index.name} to keep {single.name}"
    return f"{index.parent}: one model must be there, got two: {written}. {cure}"


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found; the index names it") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({error}). Copy it again") from None


def _is_in_out(path: Path, opened: Any) -> bool:
    layout = (opened.metadata() or {}).get("format")
    if layout not in (None, *OUT_IN, *IN_OUT):
        rule = f"{', '.join(OUT_IN)} for [out, in] weights or {', '.join(IN_OUT)} for [in, out], got {layout!r}"
        raise ValueError(f"{path}: format in its metadata must be {rule}. Save it with transformers")
    return layout in IN_OUT


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def write_shards(
    folder: Path,
    prefix: str,
    sizes: Mapping[str, int],
    values: Callable[[list[str]], dict[str, Array]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, str]:
    """Write tensors as `prefix-*.safetensors`; readers see what was there before until `write_index`.

    Args:
        sizes: bytes of every tensor, by name, in order.
        values: the tensors of a shard, for their names: one shard at a time is held.
        max_shard_bytes: a shard is closed before it grows over this.

    Returns:
        Tensor -> file.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing new stays behind.
    """
    shards = divide(sizes, max_shard_bytes)
    files = file_names(prefix, len(shards), free_generation(folder, prefix, len(shards)))
    try:
        for file, names in zip(files, shards, strict=True):
            _save(values(names), folder / file)
    except BaseException:
        for file in files:
            (folder / file).unlink(missing_ok=True)
        raise
    return {name: file for file, names in zip(files, shards, strict=True) for name in names}


def write_index(folder: Path, prefix: str, weight_map: Mapping[str, str]) -> None:
    """Make the new shards the folder's in one rename, then remove those that they replace."""
    files = set(weight_map.values())
    total_size = sum((folder / file).stat().st_size for file in files)
    content = json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=1)
    index = folder / f"{prefix}.safetensors.index.json"
    replaced = _replaced(folder, prefix, index)
    atomic.write_file(index, content.encode())
    for name in replaced - files:
        (folder / name).unlink(missing_ok=True)


def _replaced(folder: Path, prefix: str, index: Path) -> set[str]:
    """Shards, and whatever files of this folder the index names."""
    named = set()
    with contextlib.suppress(FileNotFoundError, ValueError):
        named = {name for name in _weight_map(index).values() if name == Path(name).name}
    shard = _shard_name(prefix)
    return named | {path.name for path in folder.glob(f"{prefix}*.safetensors") if shard.fullmatch(path.name)}


def _shard_name(prefix: str) -> re.Pattern[str]:
    """Of transformers' files and of ours, which may have a number more."""
    return re.compile(re.escape(prefix) + r"(-\d{5}-of-\d{5}(\.\d+)?)?\.safetensors")


def _save(tensors: dict[str, Array], path: Path) -> None:
    path.touch()  # with the mode that the umask gives; the library makes its own file, which nobody else may read
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})  # transformers asks for the layout that this names
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error}). What was saved before is still whole") from None
    path.chmod(mode)
    atomic.sync(path)


def divide(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """The names of each file's tensors."""
    shards: list[list[str]] = []
    room = 0
    for name, num_bytes in sizes.items():
        if not shards or num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= num_bytes
    return shards


def file_names(prefix: str, count: int, generation: int = 0) -> list[str]:
    """`prefix-00001-of-00002.safetensors`, and with a number more from the second generation on."""
    suffix = f".{generation}" if generation else ""
    return [f"{prefix}-{number:05d}-of-{count:05d}{suffix}.safetensors" for number in range(1, count + 1)]


def free_generation(folder: Path, prefix: str, count: int) -> int:
    """Of whose names none is there yet."""
    generation = 0
    while any((folder / name).exists() for name in file_names(prefix, count, generation)):
        generation += 1
    return generation
