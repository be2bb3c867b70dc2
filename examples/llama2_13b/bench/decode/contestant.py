"""What every contestant answers to: prompts go in as tokens, and greedy tokens come out, with the time of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Prompts = Sequence[Sequence[int]]


class Missing(Exception):
    """The contestant cannot run here; says what is missing and which command installs it."""


@dataclass(frozen=True)
class Facts:
    """
    Args:
        version: of the library.
        kernels: which of its kernels run, as the library itself says.
        weights: their types.
        cache: the dtype of keys and values.
        bytes_a_step: what a step reads of the weights at the least.
    """

    version: str
    kernels: str
    weights: str
    cache: str
    bytes_a_step: int


@dataclass(frozen=True)
class Answer:
    """
    Args:
        tokens: of each row, one after the prompt and one a step.
        prefill_s: until each row has its first token, in seconds.
        steps_s: seconds of each later step, which gives each row a token.
    """

    tokens: list[list[int]]
    prefill_s: float
    steps_s: list[float]


class Contestant(Protocol):
    facts: Facts

    def answer(self, prompts: Prompts, num_steps: int) -> Answer:
        """All prompts begin side by side in an empty cache. No token ends an answer."""
        ...
