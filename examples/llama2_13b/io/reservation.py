"""One writer an output folder or file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from examples.llama2_13b.io.remarks import say

LOCK = ".lock"


@contextlib.contextmanager
def reserved(folder: Path, flag: str, lock: str = LOCK) -> Iterator[None]:
    """The folder, made where it is missing, belongs to this process until the block ends or the process dies.

    With another name of the lock, what goes by that name there does, and not the folder.

    The lock is the system's (flock) on a file in the folder: a killed process leaves the file but not the lock. What
    was made here and is still empty at the end is removed.

    Raises:
        ValueError: another process has it, or it is a file; `flag` names the flag, as in "sft: --output_dir".
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{flag} must be a folder, got the file {folder}")
    made = _make(folder)
    try:
        with _locked(folder / lock, flag):
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty: the work is in it
            for path in made:
                path.rmdir()


def _make(folder: Path) -> list[Path]:
    """The folders that were missing, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    _make_folder(folder)
    return missing


def _make_folder(folder: Path) -> None:
    """As mkdir, which fails where another process removes a folder between its two looks."""
    for _ in range(100):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            return folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _locked(path: Path, flag: str) -> Iterator[None]:
    with _opened_and_locked(path, flag) as file:
        try:
            yield
        finally:
            if _is_at(file, path):
                path.unlink()


def _opened_and_locked(path: Path, flag: str) -> IO[Any]:
    """Open until the file that was locked is the one that has the name: its last owner may have removed it between."""
    while True:
        _make_folder(path.parent)
        with contextlib.suppress(FileNotFoundError):
            file = path.open("ab")
            _lock(file, flag, path.parent)
            if _is_at(file, path):
                return file
            file.close()


def new_file(path: Path, flag: str) -> TextIO:
    """An empty text file that no other process writes through this function until it is closed.

    Raises:
        ValueError: another process has it.
    """
    if path.exists() and not path.is_file():  # a device or a pipe takes lines from anyone
        return path.open("w", encoding="utf-8")
    file = path.open("a", encoding="utf-8")
    _lock(file, flag, path)
    file.truncate(0)
    return file


def _lock(file: IO[Any], flag: str, shown: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        rule = f"{flag} must be one that no other process writes, got {shown}"
        raise ValueError(f"{rule}. Name another, or wait until that process has ended") from None
    except OSError as error:  # some network file systems have no locks
        say(f"{shown}: cannot be locked ({error.strerror}); see that no other process writes to it", sys.stderr)


def _is_at(file: IO[Any], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
