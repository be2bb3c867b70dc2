"""NumPy arrays: host memory, no autograd, no graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from fusionkit import dtypes
from fusionkit.spec import OpSpec, TensorSpec

NAME = "numpy"
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in dtypes.DTYPES
}


def owns(kind: type) -> bool:
    return issubclass(kind, np.ndarray)


def describe(tensor: Any) -> TensorSpec:
    dtype = tensor.dtype.name if tensor.dtype.isnative else str(tensor.dtype)  # ">i4": no kernel reads it
    return TensorSpec(tensor.shape, dtype, "cpu", tensor.flags.c_contiguous)


def current_device() -> str:
    return "cpu"


def wants_gradient(tensors: list[Any]) -> bool:
    return False


def is_symbolic(tensor: Any) -> bool:
    return False


def to_numpy(tensor: Any) -> Any:
    return tensor


def place_of(tensor: Any) -> None:
    return None


def autocast() -> None:
    return None


def cast_for(state: Any, spec: OpSpec, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return dict(tensors)
