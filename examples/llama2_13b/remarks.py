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
        self._stream = stream

    def write(self, text: str) -> None:
        """Characters that the stream's encoding lacks become their codes."""
        if self._stream is None:
            return
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # the latter of a closed file
            self._give_up()

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def _give_up(self) -> None:
        """What the stream still holds goes nowhere, else Python would exit with status 120."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())  # type: ignore[union-attr]
        self._stream = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
