"""The files of an exported program, and whether they are whole.

Paddle 3.3 computes with unset memory when `.pdiparams` is missing or its end is cut off: their sizes are written down.
"""

from __future__ import annotations

import json
from pathlib import Path

SUFFIXES = (".json", ".pdiparams")


def program_files(path: str | Path) -> tuple[Path, ...]:
    return tuple(Path(f"{path}{suffix}") for suffix in SUFFIXES)


def write_sizes(path: str | Path) -> None:
    sizes = {file.name: file.stat().st_size for file in program_files(path)}
    Path(f"{path}.sizes").write_text(json.dumps(sizes) + "\n", encoding="utf-8")


def require_whole(path: str | Path) -> None:
    """Compare the files with the sizes that they were written with.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one has another size, or the sizes cannot be read.
    """
    written = Path(f"{path}.sizes")
    for file in (*program_files(path), written):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: not found; fusionkit.passes.export writes it. Export it again")
    try:
        sizes = json.loads(written.read_text(encoding="utf-8"))
        wanted = {file: int(sizes[file.name]) for file in program_files(path)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{written}: must be the sizes of the program's files, got {error!r}. Export it again"
        ) from None
    for file, size in wanted.items():
        if (got := file.stat().st_size) != size:
            raise ValueError(
                f"{file}: must be {size} bytes, got {got}; it is truncated or of another export. Export it again"
            )
