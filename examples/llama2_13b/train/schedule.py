"""The learning rate of a step: linear warm-up, then constant, linear or cosine decay."""

from __future__ import annotations

import math

KINDS = ("linear", "cosine", "constant")


def learning_rate(step: int, kind: str, peak: float, minimum: float, warmup_steps: int, decay_steps: int) -> float:
    """The rate of step 0, 1, ...; the first one is already above zero, the peak follows the warm-up.

    From step decay_steps on it is the minimum, unless it is constant.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, decay_steps - warmup_steps))
    remaining = {"constant": 1.0, "linear": 1.0 - progress, "cosine": (1.0 + math.cos(math.pi * progress)) / 2}[kind]
    return minimum + (peak - minimum) * remaining
