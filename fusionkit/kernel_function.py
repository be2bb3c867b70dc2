"""A kernel's function, named "module:function": what it takes, held against its op, and the function itself.

A kernel may leave out parameters of its op that have a default. A call that gives one of them another value is not for
that kernel.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from fusionkit import arguments, frameworks
from fusionkit.backend import Kernel
from fusionkit.call import Call, describe
from fusionkit.capability import is_default
from fusionkit.errors import PluginError, argument_error
from fusionkit.ops import load_spec
from fusionkit.spec import OpSpec


def resolve(reference: str) -> Callable[..., Any]:
    """The function that "module:function" names.

    Raises:
        PluginError: it cannot be imported.
    """
    module, _, function = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except (Exception, SystemExit) as error:  # whatever a plugin's module raises is its problem, shown as such
        raise PluginError(f"{reference} cannot be imported: {type(error).__name__}: {error}") from error


@cache
def left_out(kernel: Kernel, op: str) -> tuple[str, ...]:
    """The op's parameters that the kernel does not take, alike in all its functions.

    Raises:
        PluginError: a function has parameters that the op has not, or lacks one without a default; or two functions of
            the kernel leave out different ones. The text prints both signatures.
    """
    if not kernel.functions:  # it serves by `for_framework` alone
        return ()
    first, *others = kernel.functions.values()
    absent = _left_out(first, op)
    for other in others:
        if _left_out(other, op) != absent:
            signatures = f"({_text(_declared(first))}), got ({_text(_declared(other))})"
            raise PluginError(f"{other} must leave out the same parameters of {op} as {first}, {signatures}")
    if kernel.vjp is not None:
        _check_vjp(kernel.vjp, op, absent)
    return absent


def _check_vjp(reference: str, op: str, absent: tuple[str, ...]) -> None:
    """It is called with the gradients of the outputs, and by name with what the kernel takes."""
    _, *taken = _declared(reference).parameters.values()
    wanted = [name for name in load_spec(op).parameters.parameters if name not in absent]
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken)
    if not takes_all and {each.name for each in taken} != set(wanted):
        both = f"(grad_outputs, {', '.join(wanted)}), got ({_text(_declared(reference))})"
        raise PluginError(f"{reference} must take what its kernel of {op} takes, {both}")


def _left_out(reference: str, op: str) -> tuple[str, ...]:
    signature, declared = load_spec(op).parameters, _declared(reference)
    wanted, got = signature.parameters, declared.parameters
    absent = tuple(name for name in wanted if name not in got)
    kept = [_look(parameter) for name, parameter in wanted.items() if name in got]
    has_all = all(wanted[name].default is not inspect.Parameter.empty for name in absent)
    if not has_all or kept != [_look(parameter) for parameter in got.values()]:
        both = f"({_text(signature)}), got ({_text(declared)})"
        advice = (
            "Parameters with a default may be left out; a default is written as a literal"
            if has_all
            else "Only parameters with a default can be left out"
        )
        raise PluginError(f"{reference} must have the signature of {op}, {both}. {advice}")
    return absent


def for_call(kernel: Kernel, call: Call) -> Callable[..., Any]:
    """The function that runs this call: of the op's whole signature, over the call's own tensors."""
    op = call.spec.name
    if call.framework is None or call.framework in kernel.functions:
        return over(kernel, call.framework or "paddle", op)
    paddle = frameworks.load("paddle")  # first: it knows the cure where Paddle cannot be imported
    return paddle.carried(over(kernel, "paddle", op), call.device)


def for_later(function: Callable[..., Any], kernel: Kernel, spec: OpSpec) -> Callable[..., Any]:
    """The function for calls that nobody has described: behind the spec's check where the kernel does not check sizes
    itself."""
    return function if kernel.checks_sizes else partial(_checked, function, spec)


def _checked(function: Callable[..., Any], spec: OpSpec, *args: Any, **kwargs: Any) -> Any:
    bound, framework = arguments.bind(spec, args, kwargs)
    describe(spec, bound, framework)
    require_writable(spec, bound)
    return function(*args, **kwargs)


def require_writable(spec: OpSpec, given: Mapping[str, Any]) -> None:
    """Refuse a read-only array that the op writes.

    Raises:
        ValueError: naming it.
    """
    for name in spec.mutates:
        flags = getattr(given[name], "flags", None)  # a NumPy array's
        if flags is not None and not flags.writeable:
            rule = "must be writable, as it is updated in place"
            raise ValueError(f"{spec.name}: {name} {rule}, got a read-only array. Copy it first")


def over(kernel: Kernel, framework: str, op: str) -> Callable[..., Any]:
    """The kernel's function over a framework's tensors, with all of the op's parameters."""
    return _with_all_parameters(resolve(kernel.functions[framework]), kernel, op)


def vjp(kernel: Kernel, op: str) -> Callable[..., dict[str, Any]]:
    """The kernel's gradients over NumPy arrays: `(grad_outputs, **arguments)`, with all of the op's parameters."""
    function, absent = resolve(str(kernel.vjp)), left_out(kernel, op)

    def call(grad_outputs: Any, **given: Any) -> dict[str, Any]:
        taken = {name: value for name, value in given.items() if name not in absent}
        gradients: dict[str, Any] = function(grad_outputs, **taken)
        return gradients

    return call if absent else function


def _with_all_parameters(function: Callable[..., Any], kernel: Kernel, op: str) -> Callable[..., Any]:
    """What the kernel leaves out must be its default."""
    parameters = load_spec(op).parameters.parameters
    order, absent = list(parameters), {name: parameters[name].default for name in left_out(kernel, op)}
    if not absent:
        return function
    first = min(map(order.index, absent))

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) <= first and absent.keys().isdisjoint(kwargs):
            return function(*args, **kwargs)
        positional = dict(zip(order, args, strict=False))
        for name, default in absent.items():
            got = positional.get(name, kwargs.get(name, default))
            if not is_default(got, default):
                rule, advice = f"{default!r} for the kernel that was bound", "Bind it with such a call"
                raise argument_error(op, name, rule, f"{got!r:.60}", advice=advice)
        taken = [value for name, value in positional.items() if name not in absent]
        return function(*taken, **{name: value for name, value in kwargs.items() if name not in absent})

    return call


class _Source(str):
    """A default as its module's source has it."""

    def __repr__(self) -> str:
        return str(self)


@cache
def _declared(reference: str) -> inspect.Signature:
    """Read from the source where it stands there: importing a kernel's module may import the vendor's package."""
    module, _, function = reference.partition(":")
    try:
        spec = importlib.util.find_spec(module)
        source = getattr(spec and spec.loader, "get_source", lambda module: None)(module)
        tree = ast.parse(source or "")
    except (ImportError, OSError, SyntaxError) as error:
        raise PluginError(f"{reference} cannot be found: {type(error).__name__}: {error}") from error
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    if found:  # the last one: others are overloads of it, or replaced by it
        return inspect.Signature(list(_parameters(found[-1].args)))
    try:
        return inspect.signature(resolve(reference))
    except (TypeError, ValueError) as error:  # a function of a compiled module may have none
        raise PluginError(f"{reference} has no signature: {error}. Wrap it in a Python function") from error


def _parameters(declared: ast.arguments) -> Iterator[inspect.Parameter]:
    positional = [*declared.posonlyargs, *declared.args]
    defaults = [*[None] * (len(positional) - len(declared.defaults)), *declared.defaults]
    for index, (argument, default) in enumerate(zip(positional, defaults, strict=True)):
        only = index < len(declared.posonlyargs)
        kind = inspect.Parameter.POSITIONAL_ONLY if only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        yield _parameter(argument, kind, default)
    if declared.vararg:
        yield _parameter(declared.vararg, inspect.Parameter.VAR_POSITIONAL)
    for argument, default in zip(declared.kwonlyargs, declared.kw_defaults, strict=True):
        yield _parameter(argument, inspect.Parameter.KEYWORD_ONLY, default)
    if declared.kwarg:
        yield _parameter(declared.kwarg, inspect.Parameter.VAR_KEYWORD)


def _parameter(argument: ast.arg, kind: Any, default: ast.expr | None = None) -> inspect.Parameter:
    value = inspect.Parameter.empty if default is None else _Source(ast.unparse(default))
    return inspect.Parameter(argument.arg, kind, default=value)


def _look(parameter: inspect.Parameter) -> tuple[str, Any, str]:
    return parameter.name, parameter.kind, repr(parameter.default)


def _text(signature: inspect.Signature) -> str:
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(parameters))[1:-1]
