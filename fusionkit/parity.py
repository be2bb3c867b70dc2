"""Proves kernels right: each case of a spec, run on a backend and held against the float64 reference.

A parity check first asserts which backend ran, from the ledger, and then compares every output, every gradient and
every input that the op writes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from fusionkit import arguments, frameworks, oracle, registry, select
from fusionkit.backend import Backend
from fusionkit.call import describe
from fusionkit.capability import Verdict
from fusionkit.comparison import (
    Comparison,
    ParityError,
    compare_each_gradient,
    compare_gradients,
    compare_outputs,
    compare_results,
    composition,
    grad_outputs,
)
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.ledger import ledger
from fusionkit.op import Op
from fusionkit.packed_weight import pack_weight
from fusionkit.policy import use_backend
from fusionkit.quantized_weight import quantize
from fusionkit.select import CHOSEN
from fusionkit.spec import Array, Case, OpSpec

Route = Literal["numpy", "paddle", "static", "torch"]
ROUTES: tuple[Route, ...] = ("numpy", "paddle", "static")
ALL_ROUTES: tuple[Route, ...] = (*ROUTES, "torch")  # which only kernels for PyTorch's own tensors serve
FRAMEWORKS: Mapping[Route, str] = {"static": "paddle"}  # route -> framework, where it is not the route's name


def as_it_is(array: Array) -> Array:
    return array


@dataclass(frozen=True)
class Run:
    """Who runs a case, and how.

    Args:
        backend, route: which kernel, and whose tensors it gets.
        grads_of: makes the gradients of the outputs from the spec, the outputs and the rank.
        placed: where each array lies when a kernel gets it by the NumPy route, such as at the end of a page.
    """

    backend: str
    route: Route
    grads_of: Callable[[OpSpec, Any, int], Any] = grad_outputs
    placed: Callable[[Array], Array] = as_it_is


def applies(spec: OpSpec, case: Case, route: Route) -> bool:
    """Ops that write their inputs are not run as a traced function of copies: the predictor's tests cover them. A
    program that is traced holds no collective op and no pack, and PyTorch's tensors no group of ours."""
    spans_ranks = spec.collective or case in spec.group_cases
    if route == "torch":
        return not (spans_ranks or case.quantized)
    return route != "static" or not (spec.mutates or spans_ranks or case.quantized)


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
    made = arguments_of(op.spec, case, dtype)
    if made.get("group") is not None and device_of(backend, route) != "cpu":
        return Verdict("no", ("the ranks of a device are processes, not threads of this one",))
    if case.quantized and not packs(op, case, backend, route):
        return Verdict("no", ("packs no such int8 or int4 weights",))
    return _verdict(op, arguments.of_rank(op.spec, made, 0), backend, route, training=False)


def packs(op: Op, case: Case, backend: str, route: Route) -> bool:
    """Whether the backend's kernel for the route's tensors packs weights as the case says, in 8 or 4 bits."""
    declared = _plugin(backend).backend
    if declared is None or op.__name__ not in declared.kernels:
        return False
    kernel = declared.kernels[op.__name__].serving(FRAMEWORKS.get(route, route))
    return (kernel.pack_rounding if case.quantized.get("activations") else kernel.pack_quantized) is not None


def _verdict(op: Op, made: Mapping[str, Any], backend: str, route: Route, training: bool) -> Verdict:
    """What the backend says to these arguments, were they the route's tensors on the backend's device."""
    call = describe(op.spec, *arguments.bind(op.spec, (), made), training=training)
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


def check(op: Op, case: Case, dtype: str, backend: str, route: Route, **how: Any) -> list[Comparison]:
    """Run one case forward and, where the op has gradients, backward. `how` is the rest of a `Run`.

    Raises:
        ParityError: the backend did not run, or a result is outside its bound.
    """
    asked = Run(backend, route, **how)
    made = arguments_of(op.spec, case, dtype)
    if case.quantized:
        compared = _check_quantized(op, case, made, dtype, asked)
    elif made.get("group") is not None:
        compared = _check_ranks(op, made, dtype, asked)
    else:
        got, written, grads, gradients = _run(op, made, asked)
        compared = compare_outputs(op.spec, made, got, written, dtype)
        if gradients is not None:
            compared += compare_gradients(op.spec, made, grads, gradients, dtype)
    wrong = [f"{c.result} is {c.share:.3g} times its bound" for c in compared if not c.share <= 1]
    if wrong:
        raise ParityError(f"{op.__name__}-{backend}-{dtype}-{case.name} ({route}): {'; '.join(wrong)}")
    return compared


def _run(op: Op, made: Mapping[str, Any], asked: Run, rank: int = 0) -> tuple[Any, Any, Any, Any]:
    """The outputs, the inputs that were written, and where the backend has them the gradients for `grads`."""
    backend, route = asked.backend, asked.route
    forward, backward = _runners(op, asked)
    with use_backend(backend):
        got, written = _counted(op, backend, lambda: forward(_copied(made)))
        if op.spec.reference_vjp is None or not _verdict(op, made, backend, route, training=True):
            return got, written, None, None
        grads = asked.grads_of(op.spec, got, rank)
        return got, written, grads, _counted(op, backend, lambda: backward(made, grads))


def _check_quantized(op: Op, case: Case, made: Mapping[str, Any], dtype: str, asked: Run) -> list[Comparison]:
    """A weight in 8 or 4 bits, beside the float64 products with the values of its codes. It has no gradient itself."""
    name = next(declared.name for declared in op.spec.inputs if declared.packable)
    weight = quantize(made[name], **case.quantized)
    with use_backend(asked.backend):
        packed = {**made, name: pack_weight(weight)}
    meant = {**made, name: weight}
    got, _, grads, gradients = _run(op, packed, asked)
    compared = compare_outputs(op.spec, meant, got, {}, dtype)
    if gradients is None:
        return compared
    if gradients.get(name) is not None:
        raise ParityError(f"{op.__name__}: the pack has a gradient")
    want = oracle.reference_vjp(op.spec, meant, grads)
    del want[name]
    rounded = composition(op.spec.tolerance.backward, dtype, partial(oracle.reference_vjp, op.spec, meant, grads), want)
    return compared + compare_each_gradient(op.spec, meant, want, rounded, gradients)


def _check_ranks(op: Op, made: dict[str, Any], dtype: str, asked: Run) -> list[Comparison]:
    """Each rank in a thread of its own, which shares the interpreter but no policy with the others."""
    from fusionkit.parallel.parity import run_ranks

    def run(rank: int, communicator: Any) -> Any:
        return _run(op, {**arguments.of_rank(op.spec, made, rank), "group": communicator}, asked, rank)

    return compare_ranks(op.spec, made, run_ranks(made["group"].world_size, run), dtype)


def compare_ranks(spec: OpSpec, made: dict[str, Any], results: list[Any], dtype: str) -> list[Comparison]:
    """What each rank of a collective op got, as `_run` returns it, beside the reference over all ranks' arguments."""
    wants = oracle.reference(spec, made)
    roundeds = composition(spec.tolerance.forward, dtype, partial(oracle.reference, spec, made), wants)
    grads = [result[2] for result in results]
    gradients: tuple[Any, Any] = {}, {}
    if grads[0] is not None:
        of_grads = partial(oracle.reference_vjp, spec, made, grads)
        exact = of_grads()
        gradients = exact, composition(spec.tolerance.backward, dtype, of_grads, exact)
    compared = []
    for rank, (got, _, _, gradient) in enumerate(results):
        own = arguments.of_rank(spec, made, rank)
        compared += compare_results(spec, own, wants[rank], roundeds[rank], got)
        want, rounded = ({name: each[rank] for name, each in one.items()} for one in gradients)
        compared += compare_each_gradient(spec, own, want, rounded, gradient)
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


def _runners(op: Op, asked: Run) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if asked.route == "numpy":
        return _through_numpy(op, asked.placed)
    framework, device = frameworks.load(FRAMEWORKS.get(asked.route, asked.route)), device_of(asked.backend, asked.route)
    wrapped = framework.traced(op) if asked.route == "static" else op  # type: ignore[attr-defined]

    def forward(arguments: dict[str, Any]) -> tuple[Any, dict[str, Array]]:
        got = framework.carried(wrapped, device)(**arguments)
        return got, {name: arguments[name] for name in op.spec.mutates if name in arguments}

    def backward(arguments: Mapping[str, Any], grads: Any) -> Any:
        return framework.vjp(wrapped, op.spec, grads, device, arguments)

    return forward, backward


def _through_numpy(op: Op, placed: Callable[[Array], Array]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def on_place(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(on_place, value))
        return placed(value) if isinstance(value, np.ndarray) else value

    def forward(arguments: dict[str, Any]) -> tuple[Any, dict[str, Array]]:
        given = {name: on_place(value) for name, value in arguments.items()}
        return op(**given), {name: given[name] for name in op.spec.mutates if name in given}

    def backward(arguments: Mapping[str, Any], grads: Any) -> Any:
        given = {name: on_place(value) for name, value in arguments.items()}
        return op.vjp(**given, grad_outputs=on_place(grads))

    return forward, backward
