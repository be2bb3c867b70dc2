"""What the contestants of the training benchmark share: first weights, tokens, AdamW's settings and a timed step."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.llama2_13b.folders.config import LlamaConfig

BETA1, BETA2, EPSILON, WEIGHT_DECAY = 0.9, 0.95, 1e-8, 0.1
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Step:
    """One step: its loss before the update, and where its seconds went."""

    loss: float
    forward: float
    backward: float
    optimizer: float

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.optimizer


@dataclass(frozen=True)
class Phases:
    """A model and its optimizer as three calls; the loss is read after the backward pass, where devices have ended."""

    forward: Callable[[], Any]
    backward: Callable[[Any], None]
    update: Callable[[], object]

    def step(self) -> Step:
        started = time.perf_counter()
        loss = self.forward()
        after_forward = time.perf_counter()
        self.backward(loss)
        value = loss.item()
        after_backward = time.perf_counter()
        self.update()
        ended = time.perf_counter()
        return Step(value, after_forward - started, after_backward - after_forward, ended - after_backward)


def weight(name: str, shape: tuple[int, ...], scale: float) -> np.ndarray[Any, Any]:
    """The parameter's first value, the same in every framework: ones, or uniform with standard deviation `scale`.

    Matrices are [in_features, out_features], the embedding [vocab_size, hidden_size].
    """
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, dtype=np.float32)
    values -= 0.5
    values *= scale * 12**0.5
    return values


def tokens(config: LlamaConfig, seq_len: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(input_ids, labels), [1, seq_len] each."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, seq_len + 1))
    return ids[:, :-1], ids[:, 1:]
