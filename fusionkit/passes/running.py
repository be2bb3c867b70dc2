"""Runs a program on a device, one operation after the other, each by the backend that takes it there."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import paddle

import fusionkit
from fusionkit import kernel_function
from fusionkit.errors import FusionkitError
from fusionkit.ops import load_spec
from fusionkit.passes.elementary import FUNCTIONS
from fusionkit.passes.program import NEUTRAL, Operation, Program

# By device: where its ops keep something between the layers of a call, another model's call must wait.
_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True)
class Call:
    """An operation, ready to run. `last` are the values that nobody reads afterwards."""

    function: Callable[..., Any]
    operation: Operation
    last: tuple[int, ...]

    def run(self, values: dict[int, Any]) -> None:
        inputs = (None if value is None else values[value] for value in self.operation.inputs)
        results = self.function(*inputs, **self.operation.attributes)
        if len(self.operation.outputs) == 1 and not isinstance(results, tuple):
            results = (results,)
        values.update(zip(self.operation.outputs, results, strict=False))
        for value in self.last:
            values.pop(value, None)


class Running:
    """A program with its parameters on a device.

    What depends on parameters alone, such as a table of angles in the layout of a device's op, is computed once, here.

    Args:
        program: in which every operation is an op of fusionkit, one of `elementary`, or one of `functions`.
        tensors: the parameters' values.
        device: where they are, and where the inputs of a call must be.
        functions: operation -> "module:function", of the backend whose passes have run.
        takes_turns: calls on this device wait for each other.

    Raises:
        FusionkitError: nothing here runs an operation; it is named.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[int, Any],
        device: str,
        functions: Mapping[str, str],
        takes_turns: bool = False,
    ) -> None:
        self.input_names = list(program.inputs)
        self._inputs = list(program.inputs.values())
        self._outputs = program.outputs
        self._turn = _turns[device] if takes_turns else nullcontext()
        resolved = {name: kernel_function.resolve(reference) for name, reference in functions.items()}
        known = {**tensors, **program.constants}
        with paddle.no_grad():
            left = _folded(program, known, resolved)
        read = {value for each in left for value in each.inputs} | {*program.outputs, *program.guards}
        self._known = {value: tensor for value, tensor in known.items() if value in read}
        program = replace(program, operations=left)
        self._guards = program.guards
        self._guard_calls, self._calls = (
            _scheduled(program.leading_to(*values), resolved, keep={*self._known, *values})
            for values in (program.guards, program.outputs)
        )

    @property
    def operations(self) -> list[str]:
        """The names of what runs at each call, in order."""
        return [call.operation.name for call in self._calls]

    @paddle.no_grad()  # type: ignore[untyped-decorator]
    def refusal(self, inputs: Sequence[Any]) -> str | None:
        """Why the program cannot take this call; None if it can. Nothing is written."""
        values = {**self._known, **dict(zip(self._inputs, inputs, strict=True))}
        for call in self._guard_calls:
            call.run(values)
        return next((values[value] for value in self._guards if values[value] is not None), None)

    @paddle.no_grad()  # type: ignore[untyped-decorator]
    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Outputs for inputs in the order of `input_names`. In-place arguments are written where they are."""
        values = {**self._known, **dict(zip(self._inputs, inputs, strict=True))}
        with self._turn:
            for call in self._calls:
                call.run(values)
        return [values[value] for value in self._outputs]

    @paddle.no_grad()  # type: ignore[untyped-decorator]
    def timed(self, inputs: Sequence[Any]) -> list[float]:
        """Seconds of each of `operations` in a call. On a device: until it was queued."""
        values = {**self._known, **dict(zip(self._inputs, inputs, strict=True))}
        taken = []
        for call in self._calls:
            started = time.perf_counter()
            call.run(values)
            taken.append(time.perf_counter() - started)
        return taken


def _folded(program: Program, known: dict[int, Any], resolved: Mapping[str, Callable[..., Any]]) -> list[Operation]:
    """Compute into `known` what depends on known values alone, equal calls once. Returns the other operations."""
    left, results = [], dict[Any, Any]()
    for operation in program.operations:
        if operation.name.startswith(NEUTRAL) or not all(value is None or value in known for value in operation.inputs):
            left.append(operation)
            continue
        inputs = tuple(id(known[value]) for value in operation.inputs if value is not None)
        key = (operation.name, inputs, repr(sorted(operation.attributes.items())))
        if key not in results:
            Call(_function(operation.name, resolved), operation, ()).run(known)
            results[key] = [known[value] for value in operation.outputs]
        known.update(zip(operation.outputs, results[key], strict=True))
    return left


def _scheduled(
    operations: Sequence[Operation], resolved: Mapping[str, Callable[..., Any]], keep: set[int]
) -> list[Call]:
    seen = set(keep)
    calls = []
    for operation in reversed(operations):
        values = {value for value in (*operation.inputs, *operation.outputs) if value is not None}
        calls.append(Call(_function(operation.name, resolved), operation, tuple(values - seen)))
        seen |= values
    return calls[::-1]


def _function(name: str, resolved: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name.startswith(NEUTRAL):
        return _op(name.removeprefix(NEUTRAL))
    function = resolved.get(name) or FUNCTIONS.get(name)
    if function is None:
        rule = f"of fusionkit or of {', '.join(FUNCTIONS)}"
        raise FusionkitError(f"passes: an operation of the program must be {rule}, got {name}. Run it on the host")
    return function


def _op(name: str) -> Callable[..., Any]:
    """The op with the outputs of its operation: what it returns, then the inputs that it writes in place."""
    op, spec = getattr(fusionkit, name), load_spec(name)
    order = list(spec.parameters.parameters)
    names = [declared.name for declared in spec.inputs]

    def call(*inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        given = dict(zip(names, inputs, strict=False))
        given |= {key: value for key, value in attributes.items() if key in order}
        results = op(**given)
        listed = results if isinstance(results, tuple) else (results,)
        return (*listed, *(given[each] for each in spec.mutates if each in given))

    return call
