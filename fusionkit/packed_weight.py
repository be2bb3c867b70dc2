"""A linear layer's weight, laid out once for the product by the backend that will run it. It is not trained."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from fusionkit import arguments, frameworks, kernel_function, select
from fusionkit.backend import Kernel
from fusionkit.call import describe
from fusionkit.dtypes import FLOATING, QUANTIZED
from fusionkit.errors import argument_error
from fusionkit.ops import load_spec
from fusionkit.spec import Array, TensorSpec

if TYPE_CHECKING:  # it imports NumPy
    from fusionkit.quantized_weight import QuantizedWeight

OP = "pack_weight"
FLOATS = ("bfloat16", "float32")


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """What `pack_weight` returns and `fused_linear` takes in place of a weight. Immutable; threads may share it.

    Args:
        backend: who packed it, and alone can read it.
        in_features, out_features: the weight's shape.
        dtype: of the packed values: "bfloat16", "float32", "int8" or "int4".
        device: where the payload lives: "cpu", "toy:0", ...
        payload: the backend's own layout. It does not follow later changes of the weight.
        group_size, symmetric, activations: of int8 and int4, as of `pack_weight`.
    """

    backend: str
    in_features: int
    out_features: int
    dtype: str
    device: str
    payload: Any = field(repr=False)
    group_size: int | None = None
    symmetric: bool = True
    activations: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", sys.intern(str(self.dtype)))  # dispatch compares dtypes with `is`

    def __reduce__(self) -> tuple[Any, ...]:
        """Through the constructor: a dtype that comes out of a file is another string object."""
        return PackedWeight, tuple(getattr(self, each.name) for each in fields(self))

    @property
    def shape(self) -> tuple[int, int]:
        return self.in_features, self.out_features

    @property
    def num_bytes(self) -> int:
        """What an int8 or int4 pack takes in memory."""
        return int(self.payload.num_bytes)

    @property
    def stop_gradient(self) -> bool:
        """True, as of a frozen tensor: a pack has no gradient, and refuses to be told otherwise."""
        return True

    def describe_packed(self) -> TensorSpec:
        """What dispatch asks of it, as of a tensor."""
        return TensorSpec(self.shape, self.dtype, self.device, packed_by=self.backend, activations=self.activations)

    def payload_for(self, backend: str) -> Any:
        """The payload, for a kernel of the backend that made it.

        Raises:
            ValueError: another backend packed it.
        """
        if backend != self.backend:
            rule = f"a tensor, or packed by {backend}"
            raise argument_error("fused_linear", "weight", rule, f"packed by {self.backend}", advice="Pack it again")
        return self.payload


def pack_weight(
    weight: Any,
    *,
    dtype: str | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    activations: str | None = None,
) -> PackedWeight:
    """Lay out a linear weight for `fused_linear`, once.

    The backend is the first that policy wants, that can run `fused_linear` on the weight's device and that packs.

    Args:
        weight: [in_features, out_features], float32 / bfloat16 / float16; a Paddle tensor or a NumPy array. Read once:
            later changes do not reach the packed weight. Or a `fusionkit.quantized_weight.QuantizedWeight`, which is
            packed as it is, without dtype and what follows here.
        dtype: of the packed values, "bfloat16", "float32", "int8" or "int4"; None: the weight's own, and float32 of a
            float16 weight. `fused_linear` takes a bfloat16 pack with x of that dtype, and the others with x of any
            dtype: the product is then in float32, without rounding the weight to x's dtype.
        group_size: of int8 and int4: how many in_features of a column share a scale, 16, 32, 64 or 128; None: all.
        symmetric: of int8 and int4: True: values are code * scale. False: each group has a minimum too.
        activations: of int8 and int4: "int8": x is rounded to int8 before it is multiplied, which is faster with
            several rows: within 1/254 of the largest magnitude among each 32 numbers of a row. None: it is not.

    Returns:
        A `PackedWeight` of the weight's shape. bfloat16 and float32: each value rounded once. int8 and int4: each
        value within half a scale of the weight's, as `fusionkit.quantized_weight.quantize` says.

    Raises:
        ValueError: weight is not a finite floating matrix, or dtype, group_size, symmetric or activations is not as
            above.
        TypeError: weight is not a tensor with values.
        NoBackendError: no backend that policy allows can pack it.

    A pack has no gradient. Through one of int8 or int4 x and bias have theirs, where the backend says so; they take no
    notice of what rounds x.
    """
    from fusionkit.quantized_weight import QuantizedWeight, quantize

    if isinstance(weight, QuantizedWeight):
        return _pack_quantized(_as_it_is(weight, dtype, group_size, symmetric, activations), "cpu")
    _check_format(dtype, group_size, symmetric, activations)
    array, device = _on_host(weight)
    if array.ndim != 2 or array.dtype.name not in FLOATING:
        got = f"{list(array.shape)} {array.dtype.name}"
        raise argument_error(OP, "weight", f"[in_features, out_features] of dtype {' or '.join(FLOATING)}", got)
    if dtype in QUANTIZED:
        return _pack_quantized(quantize(array, dtype, group_size, symmetric, activations), device)
    dtype = dtype or ("bfloat16" if array.dtype.name == "bfloat16" else "float32")
    backend, kernel = _packer(array.shape, dtype, device, "pack")
    payload = kernel_function.resolve(str(kernel.pack))(array, dtype, device)
    return PackedWeight(backend, array.shape[0], array.shape[1], dtype, device, payload)


def _pack_quantized(weight: QuantizedWeight, device: str) -> PackedWeight:
    packing: select.Packing = "pack_quantized" if weight.activations is None else "pack_rounding"
    backend, kernel = _packer(weight.shape, "float32", device, packing)
    payload = kernel_function.resolve(getattr(kernel, packing))(weight, device)
    return PackedWeight(
        backend,
        *weight.shape,
        dtype=weight.dtype,
        device=device,
        payload=payload,
        group_size=weight.group_size,
        symmetric=weight.symmetric,
        activations=weight.activations,
    )


def _as_it_is(
    weight: QuantizedWeight, dtype: str | None, group_size: int | None, symmetric: bool, activations: str | None
) -> QuantizedWeight:
    asked = {
        "dtype": (dtype, None),
        "group_size": (group_size, None),
        "symmetric": (symmetric, True),
        "activations": (activations, None),
    }
    for name, (got, default) in asked.items():
        if got != default:
            context = "a QuantizedWeight is packed as it is"
            raise argument_error(OP, name, repr(default), repr(got), context, "Leave it out")
    return weight


def _check_format(dtype: str | None, group_size: int | None, symmetric: bool, activations: str | None) -> None:
    if dtype is not None and dtype not in (*FLOATS, *QUANTIZED):
        raise argument_error(OP, "dtype", " or ".join((*FLOATS, *QUANTIZED)), repr(dtype))
    if not isinstance(symmetric, bool):
        raise argument_error(OP, "symmetric", "True or False", repr(symmetric))
    if dtype not in QUANTIZED:
        context = f"{' and '.join(FLOATS)} packs have no scales"
        if group_size is not None:
            raise argument_error(OP, "group_size", "None", group_size, context)
        if not symmetric:
            raise argument_error(OP, "symmetric", "True", repr(symmetric), context)
        if activations is not None:
            context = f"{' and '.join(FLOATS)} packs are multiplied in floats"
            raise argument_error(OP, "activations", "None", repr(activations), context)


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


def _packer(shape: tuple[int, ...], dtype: str, device: str, packing: select.Packing) -> tuple[str, Kernel]:
    """The backend that packs, and its kernel: the choice for a call of `fused_linear`, among those that pack so."""
    x, weight = TensorSpec((1, shape[0]), dtype, device), TensorSpec(shape, dtype, device)
    spec = load_spec("fused_linear")
    chosen, _ = select.select(describe(spec, *arguments.bind(spec, (x, weight), {}), training=False), packing)
    assert chosen.kernel is not None
    return chosen.backend, chosen.kernel
