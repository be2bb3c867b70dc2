"""A linear weight in 8 or 4 bits: codes, with a scale for each group of a column. No backend's layout.

value = code * scale              symmetric: codes from -2^(bits - 1) to 2^(bits - 1) - 1
value = code * scale + minimum    with minimums: codes from 0 to 2^bits - 1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fusionkit.dtypes import FLOATING, QUANTIZED, ROUNDED
from fusionkit.errors import argument_error
from fusionkit.spec import Array

OP = "pack_weight"
GROUP_SIZES = (16, 32, 64, 128)
_BITS = {"int8": 8, "int4": 4}
_ELEMENTS_AT_A_TIME = 1 << 18  # in float64, 2 MB, which a core's cache has
# Of float16's precision, in float32's range. Subnormal float32 numbers would have fewer bits.
_SCALE_BITS, SMALLEST_SCALE = 11, float(np.finfo(np.float32).smallest_normal)
_TOO_LARGE = 2.0**126  # so that code * scale, at most the difference of two weights, fits float32


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """What `pack_weight` takes in place of a float weight, and every backend's pack stands for. See the module.

    Args:
        codes: [in_features, out_features], int8; uint8 with minimums. Codes of 4 bits too, one a byte.
        scales: [groups, out_features], float32.
        minimums: the value of code 0, [groups, out_features], float32; None: symmetric. An integer zero point z is the
            minimum -z * scale.
        dtype: "int8" or "int4".
        group_size: how many in_features share a scale, 16, 32, 64 or 128; the last group may be shorter. None: all.
        activations: "int8": a product rounds x first, as `fusionkit.rounded_activations` says. None: it does not.

    Raises:
        ValueError: a shape, a dtype, a code or a scale is not as above; scales and minimums must be finite, and float32
            must hold the values of all codes.
    """

    codes: Array = field(repr=False)
    scales: Array = field(repr=False)
    minimums: Array | None = field(repr=False)
    dtype: str
    group_size: int | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        require_format(self.dtype, self.group_size)
        require_activations(self.activations)
        wanted = "int8" if self.minimums is None else "uint8"
        if self.codes.ndim != 2 or self.codes.dtype != wanted:
            raise _error("codes", f"[in_features, out_features] of dtype {wanted}", _shown(self.codes))
        shape = (num_groups(self.shape[0], self.group_size), self.shape[1])
        for name, array in (("scales", self.scales), ("minimums", self.minimums)):
            if array is not None and (array.shape != shape or array.dtype != "float32"):
                raise _error(name, f"{list(shape)} float32", _shown(array))
            if array is not None and not np.isfinite(array).all():
                raise _error(name, "finite", "infinity or NaN")
        low, high = code_range(self.dtype, self.minimums is None)
        if self.codes.size and not low <= self.codes.min() <= self.codes.max() <= high:
            raise _error("codes", f"from {low} to {high}", f"{self.codes.min()} to {self.codes.max()}")
        self._require_float32_values(max(-low, high))

    def _require_float32_values(self, largest_code: int) -> None:
        """A kernel makes the values in float32: beyond it they would be infinities, and the reference's would not."""
        scale, *minimum = (float(np.abs(each).max(initial=0)) for each in self._parameters())
        if largest_code * scale + sum(minimum) > float(np.finfo(np.float32).max):
            raise _error("scales", "so small that float32 holds each value", f"up to {scale:.3g}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def bits(self) -> int:
        return _BITS[self.dtype]

    @property
    def symmetric(self) -> bool:
        return self.minimums is None

    @property
    def scale_dtype(self) -> str:
        """The smallest dtype that holds each scale and minimum as it is: "float16" or "float32"."""
        with np.errstate(over="ignore"):
            kept = [np.array_equal(each.astype(np.float16), each) for each in self._parameters()]
        return "float16" if all(kept) else "float32"

    @property
    def num_bytes(self) -> int:
        """Codes, and scales and minimums of `scale_dtype`: what a product reads, unless its backend shortens them."""
        itemsize = 2 if self.scale_dtype == "float16" else 4
        in_features, out_features = self.shape
        codes = out_features * -(-in_features * self.bits // 8)
        return codes + itemsize * sum(each.size for each in self._parameters())

    def dequantize(self) -> Array:
        """The values, [in_features, out_features], float64."""
        per_row = _group_of_each_row(self.shape[0], self.group_size)
        values = self.codes * self.scales.astype(np.float64)[per_row]
        return values if self.minimums is None else values + self.minimums.astype(np.float64)[per_row]

    def _parameters(self) -> list[Array]:
        return [each for each in (self.scales, self.minimums) if each is not None]


def quantize(
    weight: Array,
    dtype: str,
    group_size: int | None = None,
    symmetric: bool = True,
    activations: str | None = None,
) -> QuantizedWeight:
    """Round a weight to the nearest codes.

    Symmetric: scale = max |w| / (2^(bits - 1) - 1) over the group, so that 0 stays 0. Otherwise minimum = min w and
    scale = (max w - minimum) / (2^bits - 1). Scales are rounded up and minimums down, to the 11 significant bits of
    float16, before the codes are chosen. So no code is clipped, and each value is within scale / 2 of its weight.

    Args:
        weight: [in_features, out_features], float32 / bfloat16 / float16, or float64.
        dtype, group_size, activations: as of `QuantizedWeight`.

    Raises:
        ValueError: weight is no matrix of these dtypes, or holds infinity, NaN or more than 8.5e37; dtype, group_size
            or activations is wrong.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 2.1, with the zero point as a float.
    """
    require_matrix(weight, dtype, group_size)
    in_features, out_features = weight.shape
    shape = num_groups(in_features, group_size), out_features
    codes = np.empty(weight.shape, np.int8 if symmetric else np.uint8)
    scales, minimums = np.zeros(shape, np.float32), None if symmetric else np.zeros(shape, np.float32)
    for strip in strips(in_features, out_features):
        groups = in_groups(weight[:, strip], group_size)
        low, scale = _lowest_and_scale(groups, dtype, symmetric)
        rounded = np.rint((groups - low[:, None]) / np.where(scale > 0, scale, 1)[:, None])
        limits = code_range(dtype, symmetric)
        codes[:, strip] = np.clip(rounded, *limits).reshape(-1, groups.shape[2])[:in_features]
        scales[:, strip] = scale
        if minimums is not None:
            minimums[:, strip] = low
    return QuantizedWeight(codes, scales, minimums, dtype, group_size, activations)


def require_matrix(weight: Array, dtype: str, group_size: int | None) -> None:
    """Raises ValueError unless these can be made into a quantized weight, finite values provided."""
    require_format(dtype, group_size)
    if weight.ndim != 2 or weight.dtype.name not in (*FLOATING, "float64"):
        dtypes = " or ".join((*FLOATING, "float64"))
        raise _error("weight", f"[in_features, out_features] of dtype {dtypes}", _shown(weight))


def require_format(dtype: str, group_size: int | None) -> None:
    """Raises ValueError unless a quantized weight can have this dtype and these groups."""
    if dtype not in QUANTIZED:
        raise _error("dtype", " or ".join(QUANTIZED), repr(dtype))
    if group_size is not None and (not isinstance(group_size, int | np.integer) or group_size not in GROUP_SIZES):
        rule = f"{', '.join(map(str, GROUP_SIZES))} or None (a whole column)"
        raise _error("group_size", rule, repr(group_size))


def require_activations(activations: str | None) -> None:
    """Raises ValueError unless a product can round x so."""
    if activations not in ROUNDED:
        raise _error("activations", " or ".join(map(repr, ROUNDED)), repr(activations))


def code_range(dtype: str, symmetric: bool) -> tuple[int, int]:
    """The smallest and the largest code."""
    count = 1 << _BITS[dtype]
    return (-count // 2, count // 2 - 1) if symmetric else (0, count - 1)


def num_groups(in_features: int, group_size: int | None) -> int:
    return -(-in_features // (group_size or max(in_features, 1)))


def _group_of_each_row(in_features: int, group_size: int | None) -> Array:
    return np.arange(in_features) // (group_size or max(in_features, 1))


def strips(in_features: int, out_features: int) -> Iterator[slice]:
    """Columns that are turned into float64 at a time."""
    step = max(1, _ELEMENTS_AT_A_TIME // max(in_features, 1))
    return (slice(begin, begin + step) for begin in range(0, out_features, step))


def in_groups(columns: Array, group_size: int | None) -> Array:
    """[groups, group_size, columns] in float64. The last row fills up the last group: it changes no extreme."""
    values = columns.astype(np.float64)
    if not (np.abs(values) < _TOO_LARGE).all():
        raise _error("weight", f"finite and below {_TOO_LARGE:.2g}", "infinity, NaN or more than that")
    size = group_size or max(len(values), 1)
    missing = -len(values) % size
    if missing:
        values = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
    return values.reshape(-1, size, columns.shape[1])


def _lowest_and_scale(groups: Array, dtype: str, symmetric: bool) -> tuple[Array, Array]:
    """The value of code 0 and the scale of each group, as float32 holds them."""
    _, most = code_range(dtype, symmetric)
    if symmetric:
        low, high = np.zeros((groups.shape[0], groups.shape[2])), np.abs(groups).max(axis=1)
    else:
        low, high = -_rounded_up(-groups.min(axis=1)), groups.max(axis=1)
    span = high - low
    return low, np.where(span > 0, np.maximum(_rounded_up(span / most), SMALLEST_SCALE), 0)


def _rounded_up(values: Array) -> Array:
    mantissas, exponents = np.frexp(values)
    rounded: Array = np.ldexp(np.ceil(mantissas * (1 << _SCALE_BITS)), exponents - _SCALE_BITS)
    return rounded


def _shown(array: Array) -> str:
    return f"{list(array.shape)} {array.dtype.name}"


def _error(argument: str, rule: str, got: str) -> Exception:
    return argument_error(OP, argument, rule, got)
