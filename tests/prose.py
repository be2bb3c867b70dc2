"""Counts prose as a reader meets it: sentences, paragraphs and lines of a page, without its code and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "examples/llama2_13b/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
]
MEAN_WORDS = 16
MOST_WORDS = 25
MOST_WORDS_IN_CODE = 30  # of docstrings and errors, which list arguments
MOST_SENTENCES = 5
MOST_COLUMNS = 110

_FENCE = re.compile(r"^\s*```")
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+")
_BREAK = re.compile(r"^\s*(?:#|\||<!--|!\[|>|$)")


@dataclass(frozen=True)
class Paragraph:
    """A paragraph or an item of a list, its markup removed."""

    text: str
    line: int

    @property
    def sentences(self) -> list[str]:
        return [each for each in re.split(r"(?<=[.!?])[)\"]?\s+", self.text) if words(each)]


def words(sentence: str) -> int:
    return len([each for each in sentence.split() if re.search(r"\w", each)])


def plain(text: str) -> str:
    """An inline code or a link's text reads as one piece; emphasis has no words."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]+`", "code", text)
    return re.sub(r"\s+", " ", text.replace("**", "")).strip()


def prose_lines(page: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line outside of fenced and indented code."""
    fenced, indented, last_blank, in_item = False, False, True, False
    for number, line in enumerate(page.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
            yield number, ""
        elif fenced:
            continue
        else:
            blank = not line.strip()
            if not blank:
                in_item = bool(_ITEM.match(line)) or (in_item and line[0] == " ")
                indented = line.startswith("    ") and (indented or last_blank) and not in_item
            yield number, "" if indented else line
            last_blank = blank


def paragraphs(page: str) -> list[Paragraph]:
    found: list[Paragraph] = []
    parts: list[str] = []
    start = 0

    def close() -> None:
        if parts:
            found.append(Paragraph(plain(" ".join(parts)), start))
            parts.clear()

    for number, line in prose_lines(page):
        if _BREAK.match(line):
            close()
            continue
        if _ITEM.match(line):
            close()
        if not parts:
            start = number
        parts.append(_ITEM.sub("", line).strip() if not parts else line.strip())
    close()
    return found


def long_sentences(docstring_or_error: str) -> list[str]:
    """Each entry of Args, Returns and Raises, each candidate of a refused call, begins anew."""
    entries = re.split(r"\n\s*(?=\w[\w, .]*: |\w+:\n|\n|- )", docstring_or_error)
    found = [part for entry in entries for part in Paragraph(plain(entry), 0).sentences]
    return [sentence for sentence in found if words(sentence) > MOST_WORDS_IN_CODE]


def faults(page: str) -> list[str]:
    """What a reader would stumble over: `line: what is too long`, and the mean if that is."""
    found = [
        f"{number}: a line of {len(line)} columns"
        for number, line in prose_lines(page)
        if len(re.sub(r"\]\(http[^)]*\)", "]", line)) > MOST_COLUMNS and not line.lstrip().startswith(("|", "!["))
    ]
    counts = []
    for paragraph in paragraphs(page):
        if len(paragraph.sentences) > MOST_SENTENCES:
            found.append(f"{paragraph.line}: a paragraph of {len(paragraph.sentences)} sentences")
        for sentence in paragraph.sentences:
            counts.append(words(sentence))
            if counts[-1] > MOST_WORDS:
                found.append(f"{paragraph.line}: a sentence of {counts[-1]} words: {sentence}")
    mean = sum(counts) / max(len(counts), 1)
    if mean > MEAN_WORDS:
        found.append(f"a mean of {mean:.1f} words a sentence")
    return found
