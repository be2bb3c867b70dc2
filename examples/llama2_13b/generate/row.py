"""A request under way: its tokens, what the cache has of them, and how its text goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.generate.block_manager import Key, next_key
from examples.llama2_13b.generate.request import Delta, FinishReason, Request
from examples.llama2_13b.generate.sampling import logprobs, next_token
from examples.llama2_13b.generate.stop_strings import StopStrings
from examples.llama2_13b.generate.text_stream import Decode, TextStream


class Row:
    """A request between its arrival and its end.

    Args:
        request: what is asked.
        longest: tokens of prompt and answer together at most, as the engine has it.
        decode: makes text of tokens.

    Attributes:
        tokens: prompt and answer so far.
        blocks: of the cache; none while the row waits.
        num_cached: how many of the tokens have their keys and values in the blocks.
    """

    def __init__(self, request: Request, longest: int, decode: Decode) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.blocks: list[int] = []
        self.num_cached = 0
        self._longest = min(longest, len(request.prompt) + (request.max_new_tokens or sys.maxsize))
        self._random = np.random.default_rng(request.settings.seed)  # its own: no draw depends on other rows
        self._text, self._stops = TextStream(decode), StopStrings(request.stop)
        self._keys: list[Key] = []

    @property
    def num_pending(self) -> int:
        """Tokens that are not in the cache: the prompt at first, later the last token, after preemption all."""
        return len(self.tokens) - self.num_cached

    @property
    def is_complete(self) -> bool:
        """Whether the scores of the last step are those of the next token."""
        return self.num_pending == 0

    @property
    def answer(self) -> Sequence[int]:
        return self.tokens[len(self.request.prompt) :]

    def keys(self, count: int, block_size: int) -> list[Key]:
        """Of the first `count` blocks, which are full."""
        while len(self._keys) < count:
            start = len(self._keys) * block_size
            before = self._keys[-1] if self._keys else b""
            self._keys.append(next_key(before, self.tokens[start : start + block_size]))
        return self._keys[:count]

    def advance(self, scores: NDArray[np.float32]) -> Delta:
        """Choose the next token from the scores that follow the last one."""
        request, settings = self.request, self.request.settings
        if not np.isfinite(scores).all():
            return Delta(request.id, text=self._rest()[0], finish_reason="error")
        token = next_token(scores, settings, request.prompt, self.answer, self._random)
        told = () if settings.num_logprobs is None else (logprobs(scores, token, settings.num_logprobs),)
        self.tokens.append(token)
        text, reason = self._continue_text(token)
        return Delta(request.id, (token,), text, told, reason)

    def _continue_text(self, token: int) -> tuple[str, FinishReason | None]:
        if token in self.request.eos_token_ids and not self.request.ignore_eos:
            return self._rest()[0], "stop"
        text, stopped = self._stops.push(self._text.push(token))
        if stopped:
            return text, "stop"
        if len(self.tokens) < self._longest:
            return text, None
        rest, stopped = self._rest()
        return text + rest, "stop" if stopped else "length"

    def _rest(self) -> tuple[str, bool]:
        """(the text that waits, whether it held a stop string)."""
        text, stopped = self._stops.push(self._text.flush())
        return (text, True) if stopped else (text + self._stops.flush(), False)
