"""The next token from the scores of the vocabulary."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.generate.generation_settings import GenerationSettings

Floats = NDArray[np.float64]
LARGEST = np.finfo(np.float64).max  # a penalty may take a score beyond it, and infinity has no softmax


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
    cumulative = np.cumsum(distribution(scores, settings))
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))


def penalized(scores: Floats, penalty: float, seen: Collection[int]) -> Floats:
    """Divide the positive scores of seen tokens by the penalty and multiply the others with it.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, with the usual reading of negative scores.
    """
    if penalty == 1 or not seen:
        return scores
    tokens = np.unique(np.fromiter(seen, np.int64))
    result = scores.copy()
    with np.errstate(over="ignore"):
        result[tokens] = np.where(scores[tokens] > 0, scores[tokens] / penalty, scores[tokens] * penalty)
    return np.clip(result, -LARGEST, LARGEST)


def distribution(scores: Floats, settings: GenerationSettings) -> Floats:
    """softmax(scores / temperature), restricted to the tokens that top_k, then top_p, then min_p keep.

    top_k keeps the tokens with so many highest scores, equal ones included; 0 keeps all. top_p keeps the fewest
    likeliest tokens whose sum reaches that part of what is left. min_p keeps those with at least that part of the
    highest probability. Not normalised again.

    Source: Holtzman et al. 2019, arXiv:1904.09751, section 3.1 (top_p); Nguyen et al. 2024, arXiv:2407.01082 (min_p);
    the order of transformers 5.
    """
    with np.errstate(over="ignore"):
        probabilities: NDArray[np.float64] = np.exp((scores - scores.max()) / settings.temperature)
    if 0 < settings.top_k < scores.size:
        kth = np.partition(scores, -settings.top_k)[-settings.top_k]
        probabilities[scores < kth] = 0
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= settings.top_p]] = 0
    probabilities[probabilities < settings.min_p * probabilities.max()] = 0
    return probabilities
