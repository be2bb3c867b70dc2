"""What enters the engine and what leaves it: a request, how its tokens are chosen, and the news of a step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]
MAX_BIAS = 100.0  # OpenAI's range
MAX_PENALTY = 2.0  # OpenAI's range


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def is_number(value: object) -> bool:
    """Whether it is finite as a float64; an integer of JSON may be too large for one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class SamplingSettings:
    """How a request's next token is chosen; `sampling.next_token` has the formulas.

    Args:
        temperature: scores are divided by it; 0 chooses the highest score and draws nothing.
        top_p: draw from the fewest likeliest tokens whose probabilities reach this sum; in (0, 1].
        top_k: draw from so many likeliest tokens; 0 keeps all.
        min_p: draw from tokens with at least this part of the highest probability; in [0, 1].
        repetition_penalty: divides positive scores of tokens in prompt and answer, multiplies negative ones; above 0.
        presence_penalty: subtracted from the score of each token that the answer has; in [-2, 2].
        frequency_penalty: subtracted once for each time that the answer has the token; in [-2, 2].
        seed: of the request's own generator. Equal requests with equal seeds have equal answers.
        logit_bias: token -> what is added to its score, in [-100, 100].
        num_logprobs: None for no log-probabilities; 0 for those of the chosen tokens; n for the n likeliest too.

    Raises:
        ValueError: a value is impossible; it is named.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    num_logprobs: int | None = None

    def __post_init__(self) -> None:
        self._require(is_number(self.temperature) and self.temperature >= 0, "temperature", "at least 0")
        self._require(is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "in (0, 1]; 1 keeps every token")
        self._require(_is_count(self.top_k), "top_k", "an integer of at least 0; 0 keeps every token")
        self._require(is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", "in [0, 1]; 0 keeps every token")
        penalty = self.repetition_penalty
        self._require(is_number(penalty) and penalty > 0, "repetition_penalty", "above 0; 1 changes nothing")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            in_range = is_number(value) and abs(value) <= MAX_PENALTY
            self._require(in_range, name, f"in [-{MAX_PENALTY:g}, {MAX_PENALTY:g}]; 0 changes nothing")
        self._require(_is_count(self.seed), "seed", "an integer of at least 0")
        right = all(_is_count(token) and is_number(bias) for token, bias in self.logit_bias.items())
        right = right and all(abs(bias) <= MAX_BIAS for bias in self.logit_bias.values())
        self._require(right, "logit_bias", f"of tokens to numbers in [-{MAX_BIAS:g}, {MAX_BIAS:g}]")
        wanted = self.num_logprobs
        self._require(wanted is None or _is_count(wanted), "num_logprobs", "an integer of at least 0, or None")

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"request: {name} must be {rule}, got {getattr(self, name)!r}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Request:
    """A prompt to be answered.

    Args:
        id: names it in what the engine returns; no two requests that are under way have the same.
        prompt: token ids; at least one.
        settings: how tokens are chosen.
        max_new_tokens: of the answer at most; None lets it go on to the model's last position.
        stop: the answer's text ends before the first of these strings. None of them is empty.
        eos_token_ids: the answer ends with the first of these tokens.
        ignore_eos: an end token is a token like others.

    Raises:
        ValueError: a value is impossible; it is named.
    """

    id: str
    prompt: tuple[int, ...]
    settings: SamplingSettings = SamplingSettings()
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._require(all(map(_is_count, self.prompt)), "prompt", "of integers that are at least 0")
        limit = self.max_new_tokens
        self._require(limit is None or (_is_count(limit) and limit > 0), "max_new_tokens", "at least 1, or None")
        self._require(all(isinstance(text, str) and text for text in self.stop), "stop", "of texts that are not empty")

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"request {self.id}: {name} must be {rule}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities: before bias, penalties, temperature and filters.

    Args:
        token: that was chosen.
        logprob: its own.
        top: (token, logprob) of the likeliest, in descending order; `num_logprobs` of them. They need not have `token`.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What a step brought to one request.

    Args:
        request_id: whose news it is.
        tokens: the new ones, an end token included. None in the news of a request that was cancelled.
        text: new text, whole characters. It may lag behind the tokens: what could begin a stop string waits, and so do
            bytes of an unfinished character. All texts of a request together are its answer, without the stop string.
        logprobs: of each of `tokens` if the request asks for them, else empty.
        finish_reason: None while the request goes on. "stop": an end token or a stop string came. "length": it has
            max_new_tokens, or the model's positions or the cache ended. "cancelled": someone called `Engine.cancel`.
            "error": the model's scores were NaN or infinite, as float16 may make them; there is no token to choose.
    """

    request_id: str
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
