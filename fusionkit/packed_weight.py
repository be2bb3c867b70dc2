"""A linear layer's weight, laid out once for the product by the backend that will run it. For inference."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from typing import Any

from fusionkit import arguments, frameworks, kernel_function, select
from fusionkit.backend import Kernel
from fusionkit.call import describe
from fusionkit.dtypes import FLOATING
from fusionkit.errors import argument_error
from fusionkit.ops import load_spec
from fusionkit.spec import Array, TensorSpec

OP = "pack_weight"
DTYPES = ("bfloat16", "float32")
LATER = ("int8", "int4")


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """What `pack_weight` returns and `fused_linear` takes in place of a weight. Immutable; threads may share it.

    Args:
        backend: who packed it, and alone can read it.
        in_features, out_features: the weight's shape.
        dtype: of the packed values: "bfloat16" or "float32".
        device: where the payload lives: "cpu", "toy:0", ...
        payload: the backend's own layout. It does not follow later changes of the weight.
    """

    backend: str
    in_features: int
    out_features: int
    dtype: str
    device: str
    payload: Any = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", sys.intern(str(self.dtype)))  # dispatch compares dtypes with `is`

    def __reduce__(self) -> tuple[Any, ...]:
        """Through the constructor: a dtype that comes out of a file is another string object."""
        return PackedWeight, tuple(getattr(self, each.name) for each in fields(self))

    @property
    def shape(self) -> tuple[int, int]:
        return self.in_features, self.out_features

    def describe_packed(self) -> TensorSpec:
        """What dispatch asks of it, as of a tensor."""
        return TensorSpec(self.shape, self.dtype, self.device, packed_by=self.backend)

    def payload_for(self, backend: str) -> Any:
        """The payload, for a kernel of the backend that made it.

        Raises:
            ValueError: another backend packed it.
        """
        if backend != self.backend:
            rule = f"a tensor, or packed by {backend}"
            raise argument_error("fused_linear", "weight", rule, f"packed by {self.backend}", advice="Pack it again")
        return self.payload


def pack_weight(weight: Any, *, dtype: str | None = None, group_size: int | None = None) -> PackedWeight:
    """Lay out a linear weight for `fused_linear`, once.

    The backend is the first that policy wants, that can run `fused_linear` on the weight's device and that packs.

    Args:
        weight: [in_features, out_features], float32 / bfloat16 / float16; a Paddle tensor or a NumPy array. Read once:
            later changes do not reach the packed weight.
        dtype: of the packed values, "bfloat16" or "float32"; None: the weight's own, and float32 of a float16 weight.
            `fused_linear` takes the pack with x of that dtype, or of any dtype when it is float32: the product is then
            in float32, without rounding the weight to x's dtype.
        group_size: weights that share a scale; None for the dtypes above, which have none.

    Returns:
        A `PackedWeight` of the weight's shape, each value rounded once to dtype.

    Raises:
        ValueError: weight is not a floating matrix, or dtype or group_size is not as above.
        TypeError: weight is not a tensor with values.
        NoBackendError: no backend that policy allows can pack it.
    """
    _check_format(dtype, group_size)
    array, device = _on_host(weight)
    dtype = dtype or ("bfloat16" if array.dtype.name == "bfloat16" else "float32")
    if array.ndim != 2 or array.dtype.name not in FLOATING:
        got = f"{list(array.shape)} {array.dtype.name}"
        raise argument_error(OP, "weight", f"[in_features, out_features] of dtype {' or '.join(FLOATING)}", got)
    backend, kernel = _packer(array.shape, dtype, device)
    payload = kernel_function.resolve(str(kernel.pack))(array, dtype, device)
    return PackedWeight(backend, array.shape[0], array.shape[1], dtype, device, payload)


def _check_format(dtype: str | None, group_size: int | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        context = f"{dtype} packs are not supported yet" if dtype in LATER else ""
        raise argument_error(OP, "dtype", " or ".join(DTYPES), repr(dtype), context)
    if group_size is not None:
        raise argument_error(OP, "group_size", "None", group_size, f"{' and '.join(DTYPES)} packs have no scales")


def _on_host(weight: Any) -> tuple[Array, str]:
    """The weight as a NumPy array, and the device that it came from."""
    framework = frameworks.framework_of(type(weight))
    if framework is not None and framework.NAME == "numpy":
        return weight, "cpu"
    if framework is None or framework.NAME != "paddle" or framework.is_symbolic(weight):
        rule, advice = "a Paddle tensor or a NumPy array", "Pack before tracing, and from one of the two"
        raise argument_error(OP, "weight", rule, type(weight).__name__, advice=advice, kind=TypeError)
    from fusionkit.frameworks.paddle import to_numpy

    return to_numpy(weight), str(framework.describe(weight).device)


def _packer(shape: tuple[int, ...], dtype: str, device: str) -> tuple[str, Kernel]:
    """The backend that packs, and its kernel: the choice for a call of `fused_linear`, among those that pack."""
    x, weight = TensorSpec((1, shape[0]), dtype, device), TensorSpec(shape, dtype, device)
    spec = load_spec("fused_linear")
    chosen, _ = select.select(describe(spec, *arguments.bind(spec, (x, weight), {}), training=False), packing=True)
    assert chosen.kernel is not None
    return chosen.backend, chosen.kernel
