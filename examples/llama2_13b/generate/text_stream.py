"""Tokens to text, one after the other, in whole characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]  # token ids -> text, without control tokens
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are no character
MOST_BYTES = 4  # of a character in UTF-8, so of its tokens


class TextStream:
    """The text of tokens that come one by one.

    A character may have several tokens, and its text comes with the last of them. A decoder may treat the first token
    of a text in its own way, for example drop a space. So the last tokens whose text is out are decoded again, in front
    of the new ones.

    Args:
        decode: of the tokenizer.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._out: list[int] = []  # the last tokens whose text is out
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that is complete with this token."""
        if not self._decode((token, token)):
            return ""  # it has no text anywhere, as a control token; a space may lose its own at a text's beginning
        self._waiting.append(token)
        text = self._text_of_waiting()
        if not text:
            return ""
        if text.endswith(UNFINISHED):
            return self._push_bytes(text) if len(self._waiting) > 2 * MOST_BYTES else ""
        self._out, self._waiting = self._waiting, []
        return text

    def _push_bytes(self, text: str) -> str:
        """The first of many bytes that are no character: where both parts decode alone as they do together."""
        for count in range(MOST_BYTES, 2 * MOST_BYTES):
            last = self._decode(self._waiting[-count:])
            if text.endswith(last) and text.removesuffix(last) + last == self._decode(self._waiting):
                self._out, self._waiting = [], self._waiting[-count:]
                return text.removesuffix(last)
        return ""

    def flush(self) -> str:
        """What waits when no more tokens come: bytes that are no character, as the decoder shows them."""
        text = self._text_of_waiting()
        self._out, self._waiting = [], []
        return text

    def _text_of_waiting(self) -> str:
        before, together = self._decode(self._out), self._decode(self._out + self._waiting)
        return together[len(before) :] if together.startswith(before) else self._decode(self._waiting)
