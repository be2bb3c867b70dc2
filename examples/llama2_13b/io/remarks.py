"""What is said and drawn beside the work: where that fails the work goes on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Screen:
    """A stream that may be gone: a closed terminal or pipe, a full disk behind `2> file`, or None for a closed one."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Characters that the stream's encoding lacks become their codes."""
        if self.stream is None:
            return
        try:
            self.stream.write(shown(text, self.stream))
        except (OSError, ValueError):  # the latter of a closed file
            self._give_up()

    def flush(self) -> None:
        try:
            if self.stream is not None:
                self.stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:  # closed
            return False

    def _give_up(self) -> None:
        """What the stream still holds goes nowhere, else Python would exit with status 120."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())  # type: ignore[union-attr]
        self.stream = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def shown(text: str, stream: TextIO | Screen) -> str:
    """The text in the characters that the stream's encoding has."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def screens() -> Iterator[None]:
    """Inside the block what is printed may go unread; see `required` for what may not."""
    _fill_closed_descriptors()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Screen(sys.stdout), Screen(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()  # Python's own flush at exit would print a trace where nobody reads
        sys.stdout, sys.stderr = streams


def _fill_closed_descriptors() -> None:
    """After `>&- 2>&-` the next files opened would be 1 and 2, and get what libraries print."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def required() -> TextIO | Screen:
    """Standard output, for what must arrive: writing there fails where a `Screen` would go on."""
    stream = sys.stdout
    return stream if not isinstance(stream, Screen) else stream.stream or stream


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line, on standard output if not told otherwise."""
    screen = Screen(stream or sys.stdout)
    screen.write(line + "\n")
    screen.flush()


@contextlib.contextmanager
def beside_the_work(what: str) -> Iterator[None]:
    """A failure in the block is one line on stderr."""
    try:
        yield
    except Exception as error:  # a picture can fail in every way that its library has
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"{what}: {reason}. Training is not affected", sys.stderr)
