"""Text from files and command lines: Unicode, UTF-8, with a byte order mark only where one may stand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENCODING = "utf-8-sig"  # UTF-8; a byte order mark at the start of a file is dropped
BYTE_ORDER_MARK = "\ufeff"


def require_text(text: str, where: str) -> None:
    """Refuse what no tokenizer takes, and what an editor left between two texts.

    JSON and command lines can hold halves of surrogate pairs. Files that were put together keep the byte order mark of
    the second.

    Raises:
        ValueError: the text has one of them.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be Unicode text, got {ascii(text)[:60]}; {error.reason}") from None
    if (place := text.find(BYTE_ORDER_MARK)) >= 0:
        rule = "a byte order mark (U+FEFF) only at the start of a file"
        raise ValueError(f"{where} must have {rule}, got one after {place} characters. Remove it")


def read_lines(file: Path, what: str, seen: Callable[[int], object] = lambda _: None) -> Iterator[tuple[str, str]]:
    """(FILE:NUMBER, the line) for every line. `seen` is told how many bytes each has.

    Raises:
        ValueError: a line is not UTF-8; it is named, and must be `what`.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}:{number}"
            try:
                yield where, line.decode(ENCODING if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: must be {what} in UTF-8, got {line.strip()[:60]!r}; {error}") from None
            seen(len(line))


def parse_line(line: str, where: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        ValueError: it holds something else.
    """
    require_text(line, f"{where}:")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: must be a JSON object, got {line.strip()[:60]!r}; {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: must be a JSON object, got {type(fields).__name__}")
    return fields


def parse_object(content: bytes, where: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: it holds something else.
    """
    try:
        fields = json.loads(content.decode(ENCODING))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: must be a JSON object, got {type(fields).__name__}")
    return fields
