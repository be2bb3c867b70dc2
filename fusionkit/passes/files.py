"""The files of an exported program, and whether they are whole.

Paddle 3.3 computes with unset memory when `.pdiparams` is missing or its end is cut off: sizes are written down. It
writes no `.pdiparams` for a layer without parameters.
"""

from __future__ import annotations

import json
from pathlib import Path

PROGRAM, PARAMETERS, SIZES = ".json", ".pdiparams", ".sizes"


def with_suffix(path: str | Path, suffix: str) -> Path:
    return Path(f"{path}{suffix}")


def write_sizes(path: str | Path) -> None:
    written = [with_suffix(path, suffix) for suffix in (PROGRAM, PARAMETERS)]
    sizes = {file.name: file.stat().st_size for file in written if file.exists()}
    with_suffix(path, SIZES).write_text(json.dumps(sizes) + "\n", encoding="utf-8")


def read_whole(path: str | Path) -> tuple[Path, Path | None]:
    """The program's file and that of its parameters, if it has any, once their sizes are what was written.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one has another size, or the sizes cannot be read.
    """
    sizes = _sizes(with_suffix(path, SIZES))
    for name, size in sizes.items():
        file = Path(path).parent / name
        _require_there(file)
        if (got := file.stat().st_size) != size:
            rule = f"{size} bytes, got {got}; it is truncated or of another export"
            raise ValueError(f"{file}: must be {rule}. Export it again")
    parameters = with_suffix(path, PARAMETERS)
    return with_suffix(path, PROGRAM), parameters if parameters.name in sizes else None


def _sizes(file: Path) -> dict[str, int]:
    _require_there(file)
    try:
        return {name: int(size) for name, size in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        rule = f"the sizes of the program's files, got {error!r}"
        raise ValueError(f"{file}: must be {rule}. Export it again") from None


def _require_there(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found; fusionkit.passes.export writes it. Export it again")
