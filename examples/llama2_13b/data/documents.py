"""Documents to pretrain on: the texts of JSON lines, or parts of text files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from examples.llama2_13b.io.text import parse_line, read_lines, require_text

JSON_LINES = (".json", ".jsonl")
SUFFIXES = (*JSON_LINES, ".txt")


def files_of(path: Path) -> list[Path]:
    """The file itself, or those of a folder by name.

    Raises:
        FileNotFoundError: neither.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; it must be a file, or a folder of {', '.join(SUFFIXES)} files")
    return [path]


def read_documents(
    file: Path, json_key: str, doc_spliter: str = "", seen: Callable[[int], object] = lambda _: None
) -> Iterator[tuple[str, str]]:
    """(FILE:LINE, text) of every document that is not blank, one in memory at a time.

    Args:
        file: JSON lines by its suffix, else text.
        json_key: field of a JSON line with its text, or with a list of texts: paragraphs of one document.
        doc_spliter: the line between two documents of a text file; "" for an empty one.
        seen: told how many bytes are done.

    Raises:
        ValueError: a line is not as said; file and line are named.
    """
    texts = _texts(file, json_key, seen) if file.suffix in JSON_LINES else _parts(file, doc_spliter.strip(), seen)
    for where, text in texts:
        require_text(text, f"{where}:")
        if text.strip():
            yield where, text


def _texts(file: Path, json_key: str, seen: Callable[[int], object]) -> Iterator[tuple[str, str]]:
    for where, line in read_lines(file, "a JSON object", seen):
        if not line.strip():
            continue
        fields = parse_line(line, where)
        if json_key not in fields:
            names = ", ".join(fields) or "no field"
            raise ValueError(f"{where}: must have the field {json_key!r}, got {names}. --json_key names another")
        value = fields[json_key]
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: {json_key} must be a text or a list of texts, got {json.dumps(value)[:60]}")
        yield where, "\n".join(texts)


def _parts(file: Path, doc_spliter: str, seen: Callable[[int], object]) -> Iterator[tuple[str, str]]:
    """Lines keep their ends, but for the last of a document."""
    first, lines = f"{file}:1", list[str]()
    for where, line in read_lines(file, "text", seen):
        if line.strip() == doc_spliter:
            yield first, "".join(lines).rstrip("\r\n")
            lines = []
            continue
        first = first if lines else where
        lines.append(line)
    yield first, "".join(lines).rstrip("\r\n")
