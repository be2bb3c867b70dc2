"""Files and folders that appear whole or not at all, also when the process is killed or the disk is full."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one rename.

    Raises:
        OSError: the disk is full or the folder cannot be written; the file is named, and as it was.
    """
    temporary = path.with_name(f".{path.name}.saving")
    try:
        _write(temporary, content, path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def _write(temporary: Path, content: bytes, path: Path) -> None:
    try:
        temporary.write_bytes(content)
        sync(temporary)
    except OSError as error:  # of a write or a sync it has no name
        raise type(error)(error.errno, error.strerror, str(path)) from None


@contextmanager
def new_files(*paths: Path) -> Iterator[list[Path]]:
    """Temporary files to fill, which take their names when the block ends well, the last one last.

    Raises:
        OSError: as for `write_file`; the first file is named.
    """
    temporaries = [path.with_name(f".{path.name}.saving") for path in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            sync(temporary)
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise type(error)(error.errno, error.strerror, str(paths[0])) from None
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    sync(paths[0].parent)


def temporary_of(path: Path) -> Path:
    """Where `new_folder` is filled."""
    return path.with_name(f".{path.name}.saving")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes its name when the block ends well and is removed when it does not."""
    temporary, replaced = temporary_of(path), path.with_name(f".{path.name}.replaced")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        if replaced.exists() and not path.exists():  # the second rename failed
            os.rename(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)
