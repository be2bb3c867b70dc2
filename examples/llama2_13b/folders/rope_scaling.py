"""Rotary frequencies for more positions than a model was pretrained with.

Each kind has the fields of `config.json`, and turns the frequencies f_i = theta^(-2 i / head_dim) into others. A pair
of elements turns by position * f_i, so its wavelength is 2 pi / f_i positions.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Frequencies = NDArray[np.float64]


@dataclass(frozen=True)
class RopeScaling:
    """What every kind has.

    Args:
        factor: how many times as many positions, at least 1.

    Raises:
        ValueError: a field cannot be; it is named.
    """

    factor: float
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                _require(isinstance(value, bool), field.name, "true or false", value)
            elif value is not None or not str(field.type).endswith("None"):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                _require(number and 0 < value < math.inf, field.name, "a number above 0", value)
        _require(self.factor >= 1, "factor", "at least 1", self.factor)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by, queries' and keys' alike."""
        return 1.0

    def frequencies(self, unscaled: Frequencies, theta: float) -> Frequencies:
        """[head_dim / 2] of each pair, from those without scaling."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """As `config.json` has it."""
        return {"rope_type": self.kind, **{name: v for name, v in dataclasses.asdict(self).items() if v is not None}}


@dataclass(frozen=True)
class Linear(RopeScaling):
    """f / factor. Source: Chen et al. 2023, arXiv:2306.15595, section 2.3."""

    kind = "linear"

    def frequencies(self, unscaled: Frequencies, theta: float) -> Frequencies:
        return unscaled / self.factor


@dataclass(frozen=True)
class Dynamic(RopeScaling):
    """f of a larger theta, which grows with a sequence that is longer than max_position_embeddings; else f.

    Longer ones are refused here, so this changes nothing. transformers turns the keys in the cache by the theta of the
    step that wrote them, and takes the longest row of a batch: its scores depend on what was computed together.
    """

    kind = "dynamic"

    def frequencies(self, unscaled: Frequencies, theta: float) -> Frequencies:
        return unscaled


@dataclass(frozen=True)
class Llama3(RopeScaling):
    """f where it turns often within the original positions, f / factor where seldom, a mean of both between.

        turns = original_max_position_embeddings * f / (2 pi)
        part = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor), at least 0 and at most 1
        part * f + (1 - part) * f / factor

    Source: Meta's Llama 3.1 release; transformers names the kind.
    """

    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    kind = "llama3"

    def __post_init__(self) -> None:
        super().__post_init__()
        above = self.high_freq_factor > self.low_freq_factor
        _require(above, "high_freq_factor", f"above low_freq_factor {self.low_freq_factor}", self.high_freq_factor)

    def frequencies(self, unscaled: Frequencies, theta: float) -> Frequencies:
        turns = self.original_max_position_embeddings * unscaled / (2 * math.pi)
        part = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return np.asarray(part * unscaled + (1 - part) * unscaled / self.factor)


@dataclass(frozen=True)
class Yarn(RopeScaling):
    """f for the first pairs, f / factor for the last, a mean of both between; and a larger amplitude.

        pair(turns) = head_dim ln(original_max_position_embeddings / (2 pi turns)) / (2 ln theta)
        ramp_i = (i - pair(beta_fast)) / (pair(beta_slow) - pair(beta_fast)), at least 0 and at most 1
        (1 - ramp) * f + ramp * f / factor
        amplitude = 0.1 ln(factor) + 1

    Args:
        attention_factor: the amplitude, instead.
        mscale, mscale_all_dim: both given, the amplitude is (0.1 mscale ln(factor) + 1) / (the same of the other).
        truncate: the two pairs are whole numbers: the first rounded down, the second up.

    Source: Peng et al. 2023, arXiv:2309.00071, sections 3.2 and 3.4; the fields are those of transformers.
    """

    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    kind = "yarn"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.beta_fast > self.beta_slow, "beta_fast", f"above beta_slow {self.beta_slow}", self.beta_fast)

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return self._amplitude(self.mscale) / self._amplitude(self.mscale_all_dim)
        return self._amplitude(1.0)

    def _amplitude(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1.0

    def frequencies(self, unscaled: Frequencies, theta: float) -> Frequencies:
        pairs = len(unscaled)
        first, last = (self._pair(turns, pairs, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        if first == last:
            last += 0.001  # transformers' way around a division by 0
        ramp = np.clip((np.arange(pairs) - first) / (last - first), 0, 1)
        return np.asarray((1 - ramp) * unscaled + ramp * unscaled / self.factor)

    def _pair(self, turns: float, pairs: int, theta: float) -> float:
        return pairs * math.log(self.original_max_position_embeddings / (2 * math.pi * turns)) / math.log(theta)


KINDS: dict[str, type[RopeScaling]] = {each.kind: each for each in (Linear, Dynamic, Llama3, Yarn)}


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {rule}, got {value}")
