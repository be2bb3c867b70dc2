"""Runs each differentiable custom op once, alone, before threads use them.

Paddle 3.3 connects an op with its gradient at the op's first call, in a map of the process that nothing guards: two
threads' first calls end in "Attribute cast error", wrong gradients or a crash, in some 1 of 30 processes whose ranks
are threads.

The calls are small cases of the specs: one for each set of tensors that an op is given, because a bias may make it
another custom op.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fusionkit_backends.cpu
import numpy as np

from fusionkit.ops import load_spec
from fusionkit.spec import Case, OpSpec

Arguments = Mapping[str, Any]


def calls() -> Iterator[tuple[OpSpec, Callable[..., Any], Arguments]]:
    """Each differentiable op's function over Paddle tensors, with the smallest arguments of each kind, as arrays."""
    for op, kernel in fusionkit_backends.cpu.backend.kernels.items():
        spec = load_spec(op)
        if spec.reference_vjp is None or spec.collective or "paddle" not in kernel.functions:
            continue
        module, _, name = kernel.functions["paddle"].partition(":")
        function = getattr(importlib.import_module(module), name)
        for arguments in _smallest(spec).values():
            yield spec, function, arguments


def connect() -> None:
    import paddle

    with paddle.base.dygraph.guard(paddle.CPUPlace()), paddle.enable_grad():
        for spec, function, arguments in calls():
            function(**tensors_of(spec, arguments))


def tensors_of(spec: OpSpec, arguments: Arguments) -> dict[str, Any]:
    """Paddle tensors, of which the differentiable ones want a gradient."""
    from fusionkit.frameworks.paddle import over_tensors

    tensors = {name: over_tensors(value, "cpu") for name, value in arguments.items()}
    for declared in spec.inputs:
        if declared.differentiable and declared.name in tensors:
            tensors[declared.name].stop_gradient = False
    return tensors


def _smallest(spec: OpSpec) -> dict[frozenset[str], Arguments]:
    """The tensors that a case gives -> the arguments with the fewest elements, and no empty array."""
    found: dict[frozenset[str], Arguments] = {}
    for arguments in (_arguments(case) for case in spec.cases if not case.llama):
        given = frozenset(name for name, value in arguments.items() if isinstance(value, np.ndarray))
        if all(arguments[name].size for name in given) and (
            given not in found or _num_elements(arguments) < _num_elements(found[given])
        ):
            found[given] = arguments
    return found


def _arguments(case: Case) -> dict[str, Any]:
    made = case.arguments(np.random.default_rng(0))
    return {
        name: value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value
        for name, value in made.items()
        if value is not None
    }


def _num_elements(arguments: Arguments) -> int:
    return sum(value.size for value in arguments.values() if isinstance(value, np.ndarray))
