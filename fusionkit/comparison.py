"""Compares what a kernel gave with the float64 reference: each output, gradient and written input against its bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from fusionkit import oracle
from fusionkit.errors import FusionkitError
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.oracle import rounding_to
from fusionkit.spec import Array, Epsilons, OpSpec, Rounding, TwiceComposition


class ParityError(FusionkitError, AssertionError):
    """A kernel is wrong, or another one than asked for ran."""


@dataclass(frozen=True)
class Comparison:
    """One result beside the reference: the worst error as a share of its bound; right when at most 1."""

    result: str
    share: float


def listed(value: Any) -> list[Any]:
    """The outputs of a call as a list, also of an op with a single one."""
    return list(value) if isinstance(value, tuple | list) else [value]


def grad_outputs(spec: OpSpec, outputs: Any, rank: int = 0) -> Any:
    """Normal gradients in each output's dtype; zeros for a count. A replicated result's is the same on all ranks."""
    own, shared = np.random.default_rng([7, rank]), np.random.default_rng(7)
    dtypes = [np.dtype("float32") if o.dtype.kind == "i" else o.dtype for o in listed(outputs)]
    grads = tuple(
        (shared if declared.replicated else own).standard_normal(o.shape).astype(d)
        for declared, o, d in zip(spec.outputs, listed(outputs), dtypes, strict=False)
    )
    return grads if isinstance(outputs, tuple | list) else grads[0]


def compare_outputs(
    spec: OpSpec, arguments: Mapping[str, Any], got: Any, written: Mapping[str, Array], dtype: str
) -> list[Comparison]:
    """The outputs, and bit by bit what the op wrote in place: `written` maps input names to their arrays afterwards.

    Args:
        dtype: the arithmetic's, by whose roundings a bound of `TwiceComposition` is measured.

    Raises:
        ParityError: an output has another shape or dtype than the spec declares.
    """
    mutated = _to_write(spec, arguments)
    want = oracle.reference(spec, {**arguments, **mutated})
    again = {**arguments, **_to_write(spec, arguments)}
    rounded = composition(spec.tolerance.forward, dtype, partial(oracle.reference, spec, again), want)
    compared = compare_results(spec, arguments, want, rounded, got)
    returned = {output.name: g for output, g in zip(spec.outputs, listed(got), strict=False)}
    for name, array in written.items():
        same = np.array_equal(_bits(array), _bits(returned.get(name, mutated[name].astype(array.dtype))))
        compared.append(Comparison(name, 0.0 if same else np.inf))
    return compared


def _to_write(spec: OpSpec, arguments: Mapping[str, Any]) -> dict[str, Array]:
    """Copies of what the op writes: the caller's own arrays may be given to another kernel."""
    present = (name for name in spec.mutates if arguments.get(name) is not None)
    return {name: np.array(arguments[name], np.float64) for name in present}


def composition(
    bound: Epsilons | TwiceComposition | None, dtype: str, reference: Callable[[Rounding], Any], want: Any
) -> Any:
    """The reference that rounds to the dtype after each step, where the bound reads it: it takes as long as `want`."""
    return reference(rounding_to(dtype)) if isinstance(bound, TwiceComposition) else want


def compare_results(spec: OpSpec, arguments: Mapping[str, Any], want: Any, rounded: Any, got: Any) -> list[Comparison]:
    """The outputs beside `want`, the exact reference, and `rounded`, its `composition`."""
    compared = []
    for output, w, r, g in zip(spec.outputs, listed(want), listed(rounded), listed(got), strict=False):
        wanted_dtype = arguments[output.dtype].dtype.name if output.dtype in arguments else output.dtype
        if g.dtype.name != wanted_dtype or g.shape != np.shape(w):
            shown = f"{list(g.shape)} {g.dtype.name}, not {list(np.shape(w))} {wanted_dtype}"
            raise ParityError(f"{spec.name}: {output.name} is {shown}")
        compared.append(compare(output.name, spec.tolerance.forward, w, g, r, g.dtype.name))
    return compared


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(np.uint8)


def compare_gradients(
    spec: OpSpec, arguments: Mapping[str, Any], grads: Any, got: Mapping[str, Any], dtype: str
) -> list[Comparison]:
    """The gradients by input name, for the given gradients of the outputs."""
    want = oracle.reference_vjp(spec, arguments, grads)
    rounded = composition(spec.tolerance.backward, dtype, partial(oracle.reference_vjp, spec, arguments, grads), want)
    return compare_each_gradient(spec, arguments, want, rounded, got)


def compare_each_gradient(
    spec: OpSpec,
    arguments: Mapping[str, Any],
    want: Mapping[str, Array],
    rounded: Mapping[str, Array],
    got: Mapping[str, Any],
) -> list[Comparison]:
    bound = spec.tolerance.backward
    assert bound is not None
    compared = []
    for name, w in want.items():
        g = got.get(name)
        if g is None or g.dtype != arguments[name].dtype or g.shape != w.shape:
            shown = "missing" if g is None else f"{list(g.shape)} {g.dtype.name}"
            raise ParityError(f"{spec.name}: the gradient of {name} is {shown}, not like {name}")
        judged_by = g.dtype.name
        if isinstance(bound, Epsilons) and name in bound.arithmetic:
            judged_by = arguments[bound.arithmetic[name]].dtype.name
        compared.append(compare(f"d{name}", bound, w, g, rounded[name], judged_by))
    return compared


def compare(
    result: str, bound: Epsilons | TwiceComposition, want: Array, got: Array, rounded: Array, dtype: str
) -> Comparison:
    """The largest error as a share of the bound. Infinities must agree; NaN is never right."""
    if got.size == 0:
        return Comparison(result, 0.0)
    if got.dtype.kind in "biu":
        return Comparison(result, 0.0 if np.array_equal(got, want) else np.inf)
    want, got = np.asarray(want, np.float64), got.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite]) or not np.all(np.isfinite(got[finite])):
        return Comparison(result, np.inf)
    error, size = np.abs(got[finite] - want[finite]), np.abs(want[finite])
    if error.size == 0:
        return Comparison(result, 0.0)
    epsilon = float(_epsilon(dtype))
    if isinstance(bound, Epsilons):
        scale = np.maximum(size, np.sqrt(np.mean(size**2)))
        allowed = bound.count[dtype] * epsilon * scale + _smallest(dtype)
    else:
        composed = np.abs(np.asarray(rounded, np.float64)[finite] - want[finite])
        allowed = np.array(2 * np.max(composed) + bound.epsilons[dtype] * epsilon * np.max(size) + _smallest(dtype))
    return Comparison(result, float(np.max(error / allowed)))


def _epsilon(dtype: str) -> float:
    return float(_limits(dtype).eps)


def _smallest(dtype: str) -> float:
    """Below the smallest subnormal nothing can be told apart."""
    return float(_limits(dtype).smallest_subnormal)


def _limits(dtype: str) -> Any:
    finfo: Callable[..., Any] = ml_dtypes.finfo
    return finfo(DTYPES[dtype])
