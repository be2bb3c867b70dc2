"""The files that a question's answer goes to: checked before the work, written after it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fusionkit.errors import argument_error


def require_writable(who: str, **files: Path | None) -> None:
    """Refuse a file that could not be written, and leave everything as it is.

    Args:
        who: the command, for the error.
        files: by the option's name without dashes; None where it was not given.

    Raises:
        ValueError: one is a folder, or neither it nor its folder can be written.
    """
    for option, path in files.items():
        if path is None:
            continue
        try:
            _try(path)
        except OSError as error:
            rule, advice = "a file that can be written", "Name a file in a folder of yours"
            got, why = repr(str(path)), error.strerror or str(error)
            raise argument_error(who, f"--{option}", rule, got, why, advice) from None


def _try(path: Path) -> None:
    """An old file keeps its content until there is a new one. For a new file its nearest folder takes another one."""
    if path.exists():
        with path.open("ab"):
            return
    folder = next(each for each in path.absolute().parents if each.exists())
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_json(path: Path, content: dict[str, Any]) -> None:
    """In a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
