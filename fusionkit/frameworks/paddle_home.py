"""Paddle 3.3 makes ~/.cache/paddle/dataset when it is imported, and cannot be imported where that fails."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def unusable() -> tuple[str, str] | None:
    """What stands in the way of that folder, and the cure; None if nothing does."""
    home = Path("~").expanduser()
    if not os.access(home, os.W_OK):
        home = Path(tempfile.gettempdir())  # as Paddle does
    folder = home / ".cache" / "paddle" / "dataset"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = f"Paddle cannot be imported, because the folder {folder} cannot be made: {error.strerror}"
        another = f"export HOME={tempfile.gettempdir()}"
        return cause, f"move away what is in its place, or name a home that can be written: {another}"
    return None
