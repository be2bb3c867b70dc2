"""Runs each differentiable custom op once, alone, before threads use them.

Paddle 3.3 connects an op with its gradient at the op's first call, in a map of the process that nothing guards: two
threads' first calls end in "Attribute cast error", wrong gradients or a crash, in some 1 of 30 processes whose ranks
are threads.

The calls are small cases of the specs: one for each set of tensors that an op is given, because a bias or a pack may
make it another custom op.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fusionkit_backends.cpu
import numpy as np

from fusionkit.ops import load_spec
from fusionkit.packed_weight import PackedWeight
from fusionkit.quantized_weight import quantize
from fusionkit.spec import Case, OpSpec

Arguments = Mapping[str, Any]


def calls() -> Iterator[tuple[OpSpec, Callable[..., Any], Arguments]]:
    """Each differentiable op's function over Paddle tensors, with the smallest arguments of each kind, as arrays."""
    for op, kernel in fusionkit_backends.cpu.backend.kernels.items():
        spec = load_spec(op)
        if spec.reference_vjp is None or spec.collective or "paddle" not in kernel.functions:
            continue
        name, _, function = kernel.functions["paddle"].partition(":")
        module = importlib.import_module(name)
        for case, arguments in _smallest(spec).values():
            if case.quantized:
                yield spec, module.packed_through_paddle, _packed(spec, case, arguments, module)
            else:
                yield spec, getattr(module, function), arguments


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
        if declared.differentiable and not isinstance(tensors.get(declared.name), PackedWeight | None):
            tensors[declared.name].stop_gradient = False
    return tensors


def _smallest(spec: OpSpec) -> dict[frozenset[str], tuple[Case, Arguments]]:
    """The tensors that a case gives, "packed" beside them -> the one with the fewest elements, none empty."""
    found: dict[frozenset[str], tuple[int, Case, Arguments]] = {}
    for case in (case for case in spec.cases if not case.llama):
        arguments = _arguments(case)
        sizes = {name: value.size for name, value in arguments.items() if isinstance(value, np.ndarray)}
        given = frozenset((*sizes, "packed") if case.quantized else sizes)
        if all(sizes.values()) and (given not in found or sum(sizes.values()) < found[given][0]):
            found[given] = sum(sizes.values()), case, arguments
    return {given: (case, arguments) for given, (_, case, arguments) in found.items()}


def _packed(spec: OpSpec, case: Case, arguments: Arguments, module: Any) -> Arguments:
    """With the weight packed as the case says. No policy has a say, as none has in these calls."""
    name = next(declared.name for declared in spec.inputs if declared.packable)
    weight = quantize(arguments[name], **case.quantized)
    how = weight.group_size, weight.symmetric, weight.activations
    packed = PackedWeight("cpu", *weight.shape, weight.dtype, "cpu", module.pack_quantized(weight, "cpu"), *how)
    return {**arguments, name: packed}


def _arguments(case: Case) -> dict[str, Any]:
    made = case.arguments(np.random.default_rng(0))
    return {
        name: value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value
        for name, value in made.items()
        if value is not None
    }
