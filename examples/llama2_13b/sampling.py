"""The next token from the scores of the vocabulary."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.generation_settings import GenerationSettings

Floats = NDArray[np.float64]


def next_token(
    logits: NDArray[np.float32], settings: GenerationSettings, seen: Collection[int], random: np.random.Generator
) -> int:
    """Choose a token.

    Greedy: the highest score after the repetition penalty. Sampling: a draw from `distribution`.

    Args:
        logits: [vocab_size].
        seen: the tokens of the row so far, prompt included.
        random: one number of it is used, none if greedy.

    Raises:
        FloatingPointError: a score is not finite.
    """
    if not np.isfinite(logits).all():
        raise FloatingPointError("generation: the model's scores must be finite, got NaN or infinity")
    scores = penalized(logits.astype(np.float64), settings.repetition_penalty, seen)
    if settings.is_greedy:
        return int(scores.argmax())
    cumulative = np.cumsum(distribution(scores, settings.temperature, settings.top_p))
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))


def penalized(scores: Floats, penalty: float, seen: Collection[int]) -> Floats:
    """Divide the positive scores of seen tokens by the penalty and multiply the others with it.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, with the usual reading of negative scores.
    """
    if penalty == 1 or not seen:
        return scores
    tokens = np.unique(np.fromiter(seen, np.int64))
    result = scores.copy()
    result[tokens] = np.where(scores[tokens] > 0, scores[tokens] / penalty, scores[tokens] * penalty)
    return result


def distribution(scores: Floats, temperature: float, top_p: float) -> Floats:
    """softmax(scores / temperature), restricted to the fewest likeliest tokens whose sum reaches top_p.

    Not normalised again. Source: Holtzman et al. 2019, arXiv:1904.09751, section 3.1.
    """
    probabilities = np.exp((scores - scores.max()) / temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= top_p]] = 0
    return probabilities
