"""Stop strings in a text that comes in pieces: text waits while it could be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Where a text ends. The result does not depend on how the text is cut into pieces.

    Args:
        stops: the text ends before the one that is complete first; of two that are complete at once, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self._longest = max(map(len, stops), default=0)

    def push(self, piece: str) -> tuple[str, bool]:
        """(the text that is now certain, whether a stop string came)."""
        text = self._held + piece
        ends = [(at + len(stop), -len(stop)) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, length = min(ends)
            self._held = ""
            return text[: end + length], True
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What waits, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """The length of the longest end of the text with which a stop string begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
