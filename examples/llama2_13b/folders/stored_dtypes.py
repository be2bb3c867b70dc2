"""The dtypes of tensors on disk, in safetensors' words: a fine-tuned model comes out as its source came in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

NUMPY = {name: np.dtype(kind) for name, kind in
         (("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16),
          ("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2))}  # fmt: skip
CODES = {"I8": np.dtype(np.int8), "U8": np.dtype(np.uint8)}  # of quantized weights


def word(dtype: str) -> str:
    """Of a name such as "bfloat16"."""
    return next(word for word, kind in NUMPY.items() if kind.name == dtype)


def saved_as(dtype: str) -> str:
    """Of a tensor read in a dtype: that dtype, or BF16, which holds every value of the 8-bit ones."""
    return "BF16" if dtype.startswith("F8") else dtype


def rounded(value: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The value in another dtype; as it is where that holds no number so large, as float16 from 65520 on."""
    with np.errstate(over="ignore"):
        other = value.astype(NUMPY[dtype], copy=False)
    return other if np.isfinite(other).all() else value


def prevailing(sizes: Mapping[str, int], dtypes: Mapping[str, str]) -> str:
    """The name of the dtype that most elements have: what config.json says of the whole folder.

    Args:
        sizes: elements of every tensor.
        dtypes: of every tensor.
    """
    elements: Counter[str] = Counter()
    for name, size in sizes.items():
        elements[dtypes[name]] += size
    return NUMPY[elements.most_common(1)[0][0]].name
