"""The float64 reference of an op, run on arguments of any dtype."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from functools import partial
from typing import Any

from fusionkit.errors import argument_error
from fusionkit.spec import Array, OpSpec, Rounding, exact


def reference(spec: OpSpec, arguments: Mapping[str, Any], rounding: Rounding = exact) -> Any:
    """The op in float64. `rounding` after each step turns the oracle into a same-dtype composition."""
    meaning = {**_stored(spec, arguments), **_activations(arguments)}
    return spec.reference(**_in_float64(arguments), **meaning, rounding=rounding)


def reference_vjp(
    spec: OpSpec, arguments: Mapping[str, Any], grad_outputs: Any, rounding: Rounding = exact
) -> dict[str, Array]:
    """Gradients by input name, for the given gradients of the outputs."""
    assert spec.reference_vjp is not None
    return spec.reference_vjp(
        to_float64(grad_outputs), **_in_float64(arguments), **_stored(spec, arguments), rounding=rounding
    )


@functools.cache
def rounding_to(dtype: str) -> Rounding:
    """Round to a dtype and back to float64: the composition in that dtype rounds so after each step."""
    import numpy as np

    from fusionkit.frameworks.numpy import DTYPES

    narrow = DTYPES[dtype]
    return lambda array: np.asarray(array, dtype=np.float64).astype(narrow).astype(np.float64)


def to_float64(value: Any) -> Any:
    """Floating arrays in float64, and a quantized weight's values; everything else as it is. bfloat16 is of NumPy's
    kind "V"."""
    import numpy as np

    from fusionkit.quantized_weight import QuantizedWeight

    if isinstance(value, list | tuple):  # one entry per rank, or several results
        return type(value)(map(to_float64, value))
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biu":
        return value.astype(np.float64, copy=False)
    if hasattr(value, "describe_packed"):
        rule, advice = "an array or a QuantizedWeight", "Give it what was packed"
        got = f"a {type(value).__name__}; its layout is its backend's own"
        raise argument_error("reference", "weight", rule, got, advice=advice, kind=TypeError)
    return value.dequantize() if isinstance(value, QuantizedWeight) else value


def _in_float64(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_float64(value) for name, value in arguments.items()}


def _stored(spec: OpSpec, arguments: Mapping[str, Any]) -> dict[str, Rounding]:
    """The roundings that belong to the op's meaning; float64 arguments have none, nor has a quantized weight."""
    from fusionkit.quantized_weight import QuantizedWeight

    if any(isinstance(value, QuantizedWeight) for value in arguments.values()):
        return dict.fromkeys(spec.stored, exact)
    named = {keyword: arguments[name] for keyword, name in spec.stored.items()}
    dtypes = {keyword: (value[0] if isinstance(value, list) else value).dtype.name for keyword, value in named.items()}
    return {keyword: exact if dtype == "float64" else rounding_to(dtype) for keyword, dtype in dtypes.items()}


def _activations(arguments: Mapping[str, Any]) -> dict[str, Rounding]:
    """What a quantized weight says of x. Gradients take no notice of it."""
    from fusionkit.quantized_weight import QuantizedWeight
    from fusionkit.rounded_activations import rounded_to_int8

    for value in arguments.values():
        if isinstance(value, QuantizedWeight) and value.activations is not None:
            return {"activations": partial(rounded_to_int8, group_size=value.group_size)}
    return {}
