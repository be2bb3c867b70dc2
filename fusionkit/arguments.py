"""What a caller passed, bound to the signature: the arguments by name, and the framework of the tensors among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionkit.call import Call
from fusionkit.dtypes import FLOATING
from fusionkit.errors import argument_error
from fusionkit.frameworks import Framework, framework_of
from fusionkit.spec import OpSpec


def bind(spec: OpSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Framework | None]:
    """All arguments by name, defaults included, and the framework of the tensors among them.

    Raises:
        TypeError: the arguments do not fit the signature, or come from two frameworks.
    """
    try:
        bound = spec.parameters.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{spec.name}: {error}. The signature is {spec.name}{spec.parameters}") from None
    bound.apply_defaults()
    framework: Framework | None = None
    for declared in spec.inputs:
        found = framework_of(type(bound.arguments[declared.name]))
        if found is not None and framework is not None and found is not framework:
            rule = f"a {framework.NAME} tensor like the arguments before it"
            raise argument_error(spec.name, declared.name, rule, f"one of {found.NAME}", kind=TypeError)
        framework = found or framework
    return dict(bound.arguments), framework


def as_call(spec: OpSpec, arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that stand for the bound ones."""
    parameters = spec.parameters.parameters.values()
    positional = tuple(arguments[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY)
    return positional, {p.name: arguments[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def mixed(spec: OpSpec, arguments: Mapping[str, Any], framework: Framework | None) -> dict[str, Any] | None:
    """The arguments cast as automatic mixed precision wants them for this op; None where it is off."""
    if framework is None or (state := framework.autocast()) is None:
        return None
    return {**arguments, **framework.cast_for(state, spec, tensors(spec, arguments))}


def of_rank(spec: OpSpec, arguments: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """One rank's call out of all ranks' arguments, lists with an entry for each; those of another call as they are."""
    names = {declared.name for declared in spec.inputs}
    return {
        name: value[rank] if name in names and isinstance(value, list) else value for name, value in arguments.items()
    }


def tensors(spec: OpSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The framework's tensors among the arguments, by name."""
    return {i.name: arguments[i.name] for i in spec.inputs if framework_of(type(arguments[i.name])) is not None}


def remarks(spec: OpSpec, arguments: Mapping[str, Any], framework: Framework | None) -> tuple[str, ...]:
    """What the spec says of the values of these arguments; a `TensorSpec` and a value of a graph have none."""
    live = tensors(spec, arguments)

    def values(name: str) -> Any:
        readable = framework is not None and name in live and not framework.is_symbolic(live[name])
        return framework.to_numpy(live[name]) if framework is not None and readable else None

    return () if spec.remarks is None else spec.remarks(values)


def check_grad_outputs(call: Call, grad_outputs: Any) -> None:
    """Hold the gradients given to `vjp` against the op's outputs: one array, or a tuple for several.

    Raises:
        TypeError, ValueError: their number, or a shape or dtype, is not that of the outputs.
    """
    outputs = [output for output in call.spec.outputs if output.when is None or call.values[output.when]]
    given = list(grad_outputs) if isinstance(grad_outputs, tuple | list) else [grad_outputs]
    names = ", ".join(output.name for output in outputs)
    call.require(len(given) == len(outputs), "grad_outputs", f"{len(outputs)} ({names})", f"{len(given)}")
    for output, grad in zip(outputs, given, strict=True):
        dtype = call.tensors[output.dtype].dtype if output.dtype in call.tensors else output.dtype
        if dtype not in FLOATING:
            continue  # a count has no gradient
        if framework_of(type(grad)) is None:
            raise argument_error(
                call.spec.name, "grad_outputs", f"an array for {output.name}", type(grad).__name__, kind=TypeError
            )
        got = f"{list(grad.shape)} {grad.dtype}"
        fits = tuple(grad.shape) == call.shape_of(output.shape) and str(grad.dtype) == dtype
        call.require(fits, "grad_outputs", f"{list(call.shape_of(output.shape))} {dtype} for {output.name}", got)
