"""Proves kernels right: each case of a spec, run on a backend and held against the float64 reference.

A parity check first asserts which backend ran, from the ledger, and then compares every output, every gradient and
every input that the op writes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from fusionkit import arguments, frameworks, oracle, registry, select
from fusionkit.backend import Backend
from fusionkit.capability import Verdict
from fusionkit.errors import FusionkitError
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.ledger import ledger
from fusionkit.op import Op
from fusionkit.policy import use_backend
from fusionkit.select import CHOSEN
from fusionkit.spec import Array, Case, Epsilons, OpSpec, TwiceComposition, exact, rounding_to

Route = Literal["numpy", "paddle", "static", "torch"]
ROUTES: tuple[Route, ...] = ("numpy", "paddle", "static")
ALL_ROUTES: tuple[Route, ...] = (*ROUTES, "torch")  # which only kernels for PyTorch's own tensors serve
FRAMEWORKS: Mapping[Route, str] = {"static": "paddle"}  # route -> framework, where it is not the route's name


class ParityError(FusionkitError, AssertionError):
    """A kernel is wrong, or another one than asked for ran."""


@dataclass(frozen=True)
class Comparison:
    """One result beside the reference: the worst error as a share of its bound; right when at most 1."""

    result: str
    share: float


def applies(spec: OpSpec, route: Route) -> bool:
    """Ops that write their inputs are not run as a traced function of copies: the predictor's tests cover them. A
    program that is traced holds no collective op, and PyTorch's tensors no group of ours."""
    if route == "torch":
        return not spec.collective
    return route != "static" or not (spec.mutates or spec.collective)


def serves(backend: Backend, route: Route) -> bool:
    """Whether some kernel of the backend takes the route's tensors, or has arrays carried to Paddle and back."""
    framework = FRAMEWORKS.get(route, route)
    takes = {framework, "paddle"} if framework == "numpy" else {framework}
    return any(takes & kernel.serving(framework).functions.keys() for kernel in backend.kernels.values())


def needs(route: Route) -> tuple[str, ...]:
    """The package that the route's tensors come from."""
    framework = FRAMEWORKS.get(route, route)
    return () if framework == "numpy" else (framework,)


def judged(op: Op, case: Case, dtype: str, backend: str, route: Route) -> Verdict:
    """Whether the backend declares that it takes the case: what it refuses is not to be checked."""
    if op.spec.collective and device_of(backend, route) != "cpu":
        return Verdict("no", ("the ranks of a device are processes, not threads of this one",))
    made = arguments.of_rank(op.spec, arguments_of(op.spec, case, dtype), 0)
    return _verdict(op, made, backend, route, training=False)


def _verdict(op: Op, made: Mapping[str, Any], backend: str, route: Route, training: bool) -> Verdict:
    """What the backend says to these arguments, were they the route's tensors on the backend's device."""
    call = arguments.describe(op.spec, *arguments.bind(op.spec, (), made), training=training)
    call.check()
    call.framework = FRAMEWORKS.get(route, route)
    call.device = device_of(backend, route)
    return select.judge(_plugin(backend), call).verdict


def device_of(backend: str, route: Route) -> str:
    """Where the backend's cases run: its own device's first. NumPy arrays are in host memory."""
    declared = _plugin(backend).backend
    if route == "numpy" or declared is None or declared.owns("cpu"):
        return "cpu"
    if route == "torch":
        from fusionkit.frameworks.torch import knows_device

        return next(f"{name}:0" for name in declared.device_types if knows_device(name))
    return f"{declared.device_types[0]}:0"


def _plugin(backend: str) -> registry.Plugin:
    return next(plugin for plugin in registry.plugins() if plugin.name == backend)


def arguments_of(spec: OpSpec, case: Case, dtype: str) -> dict[str, Any]:
    """The case's arguments with floating inputs rounded to the dtype under test."""
    made = case.arguments(np.random.default_rng(zlib.crc32(f"{spec.name} {case.name}".encode())))
    return {name: _in_dtype(spec, case, name, value, dtype) for name, value in made.items()}


def _in_dtype(spec: OpSpec, case: Case, name: str, value: Any, dtype: str) -> Any:
    if isinstance(value, list):  # one entry per rank
        return [_in_dtype(spec, case, name, each, dtype) for each in value]
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        return value
    allowed = spec.input(name).dtypes
    fixed = allowed == ("float32",) or name in case.keep_float32
    return value.astype(DTYPES["float32" if fixed else dtype])


def check(op: Op, case: Case, dtype: str, backend: str, route: Route) -> list[Comparison]:
    """Run one case forward and, where the op has gradients, backward.

    Raises:
        ParityError: the backend did not run, or a result is outside its bound.
    """
    made = arguments_of(op.spec, case, dtype)
    if op.spec.collective:
        compared = _check_ranks(op, made, dtype, backend, route)
    else:
        got, written, grads, gradients = _run(op, made, backend, route)
        compared = _compare_outputs(op.spec, made, got, written, dtype)
        if gradients is not None:
            compared += _compare_gradients(op.spec, made, grads, gradients, dtype)
    wrong = [f"{c.result} is {c.share:.3g} times its bound" for c in compared if not c.share <= 1]
    if wrong:
        raise ParityError(f"{op.__name__}-{backend}-{dtype}-{case.name} ({route}): {'; '.join(wrong)}")
    return compared


def _run(op: Op, made: Mapping[str, Any], backend: str, route: Route, rank: int = 0) -> tuple[Any, Any, Any, Any]:
    """The outputs, the inputs that were written, and where the backend has them the gradients for `grads`."""
    device = device_of(backend, route)
    forward, backward = _runners(op, route, device)
    with use_backend(backend):
        got, written = _counted(op, backend, lambda: forward(_copied(made)))
        if op.spec.reference_vjp is None or not _verdict(op, made, backend, route, training=True):
            return got, written, None, None
        grads = _grad_outputs(op.spec, got, rank)
        return got, written, grads, _counted(op, backend, lambda: backward(made, grads))


def _check_ranks(op: Op, made: dict[str, Any], dtype: str, backend: str, route: Route) -> list[Comparison]:
    """Each rank in a thread of its own, which shares the interpreter but no policy with the others."""
    from fusionkit.parallel.parity import run_ranks

    def run(rank: int, communicator: Any) -> Any:
        own = arguments.of_rank(op.spec, made, rank)
        return _run(op, {**own, "group": communicator}, backend, route, rank)

    return compare_ranks(op.spec, made, run_ranks(made["group"].world_size, run), dtype)


def compare_ranks(spec: OpSpec, made: dict[str, Any], results: list[Any], dtype: str) -> list[Comparison]:
    """What each rank of a collective op got, as `_run` returns it, beside the reference over all ranks' arguments."""
    wants, roundeds = oracle.reference(spec, made), oracle.reference(spec, made, rounding_to(dtype))
    grads = [result[2] for result in results]
    gradients = [
        oracle.reference_vjp(spec, made, grads, rounding) if grads[0] is not None else {}
        for rounding in (exact, rounding_to(dtype))
    ]
    compared = []
    for rank, (got, _, _, gradient) in enumerate(results):
        own = arguments.of_rank(spec, made, rank)
        compared += _compare_results(spec, own, wants[rank], roundeds[rank], got)
        want, rounded = ({name: each[rank] for name, each in one.items()} for one in gradients)
        compared += _compare_each_gradient(spec, own, want, rounded, gradient)
    return compared


def _counted(op: Op, backend: str, run: Callable[[], Any]) -> Any:
    """Run, and assert by the ledger that the backend did it, as a first choice."""
    entry = (op.__name__, backend, CHOSEN)
    before = ledger().get(entry, 0)
    result = run()
    if ledger().get(entry, 0) <= before:
        raise ParityError(f"{op.__name__}: {backend} was asked for and did not run. The ledger says:\n{ledger()}")
    return result


def _copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def _runners(op: Op, route: Route, device: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if route == "numpy":
        return _through_numpy(op)
    framework = frameworks.load(FRAMEWORKS.get(route, route))
    wrapped = framework.traced(op) if route == "static" else op  # type: ignore[attr-defined]

    def forward(arguments: dict[str, Any]) -> tuple[Any, dict[str, Array]]:
        got = framework.carried(wrapped, device)(**arguments)
        return got, {name: arguments[name] for name in op.spec.mutates}

    def backward(arguments: Mapping[str, Any], grads: Any) -> Any:
        return framework.vjp(wrapped, op.spec, grads, device, arguments)

    return forward, backward


def _through_numpy(op: Op) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(arguments: dict[str, Any]) -> tuple[Any, dict[str, Array]]:
        got = op(**arguments)
        return got, {name: arguments[name] for name in op.spec.mutates}

    def backward(arguments: Mapping[str, Any], grads: Any) -> Any:
        return op.vjp(**arguments, grad_outputs=grads)

    return forward, backward


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _grad_outputs(spec: OpSpec, outputs: Any, rank: int = 0) -> Any:
    """Normal gradients in each output's dtype; zeros for a count. A replicated result's is the same on all ranks."""
    own, shared = np.random.default_rng([7, rank]), np.random.default_rng(7)
    dtypes = [np.dtype("float32") if o.dtype.kind == "i" else o.dtype for o in _listed(outputs)]
    grads = tuple(
        (shared if declared.replicated else own).standard_normal(o.shape).astype(d)
        for declared, o, d in zip(spec.outputs, _listed(outputs), dtypes, strict=False)
    )
    return grads if isinstance(outputs, tuple | list) else grads[0]


def _compare_outputs(
    spec: OpSpec, arguments: Mapping[str, Any], got: Any, written: Mapping[str, Array], dtype: str
) -> list[Comparison]:
    mutated = {name: oracle.to_float64(value) for name, value in _copied(arguments).items()}
    want = oracle.reference(spec, {**arguments, **{name: mutated[name] for name in spec.mutates}})
    rounded = oracle.reference(spec, arguments, rounding_to(dtype))
    compared = _compare_results(spec, arguments, want, rounded, got)
    returned = {output.name: g for output, g in zip(spec.outputs, _listed(got), strict=False)}
    for name, array in written.items():
        same = np.array_equal(_bits(array), _bits(returned.get(name, mutated[name].astype(array.dtype))))
        compared.append(Comparison(name, 0.0 if same else np.inf))
    return compared


def _compare_results(spec: OpSpec, arguments: Mapping[str, Any], want: Any, rounded: Any, got: Any) -> list[Comparison]:
    compared = []
    for output, w, r, g in zip(spec.outputs, _listed(want), _listed(rounded), _listed(got), strict=False):
        wanted_dtype = arguments[output.dtype].dtype.name if output.dtype in arguments else output.dtype
        if g.dtype.name != wanted_dtype or g.shape != np.shape(w):
            shown = f"{list(g.shape)} {g.dtype.name}, not {list(np.shape(w))} {wanted_dtype}"
            raise ParityError(f"{spec.name}: {output.name} is {shown}")
        compared.append(compare(output.name, spec.tolerance.forward, w, g, r, g.dtype.name))
    return compared


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(np.uint8)


def _compare_gradients(
    spec: OpSpec, arguments: Mapping[str, Any], grads: Any, got: Mapping[str, Any], dtype: str
) -> list[Comparison]:
    want = oracle.reference_vjp(spec, arguments, grads)
    rounded = oracle.reference_vjp(spec, arguments, grads, rounding_to(dtype))
    return _compare_each_gradient(spec, arguments, want, rounded, got)


def _compare_each_gradient(
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
