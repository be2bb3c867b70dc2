"""A remembered decision: the kernel for calls that look like the one it was made for.

Calls are compared by type, dtype and what the predicates consulted, with `is`: hashing a Paddle dtype costs 0.4 us.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fusionkit import kernel_function, policy, select
from fusionkit.call import Call, describe
from fusionkit.dtypes import FLOATING
from fusionkit.errors import NoBackendError, argument_error
from fusionkit.frameworks import Framework
from fusionkit.ledger import ledger
from fusionkit.spec import OpSpec, TensorSpec

MAX_PLANS = 8

Where = int | str  # a positional argument's index, or a keyword
Looks = tuple[Any, Any]  # an argument's type, and a tensor's dtype object

_OTHER_KEYWORD = (None, None, None)  # the type of no value: such a call does not fit


@dataclass(slots=True, eq=False)
class Plan:
    """See the module.

    Args:
        function: the kernel.
        calls: `next` of it adds one to the ledger's entry.
        context: the policy that held.
        matches: whether positional arguments look as they did.
        keywords: what each keyword looked like, and its value where a rule or predicate read it.
        axes, packed: what predicates consulted beyond that: sizes (argument, axis, size), and who packed a weight.
        first: where the first tensor stands.
        place: its device, as `place_of` gives it; None where all tensors live on one.
        differentiable: where the tensors stand whose gradient may be wanted.
        training: the gradient mode that was judged; None if no predicate asked for it.
        apart: pairs that must not be one tensor, as the op writes both.
        undifferentiated: where the tensors stand whose gradient must not be wanted.
        simple: nothing from `axes` to here is there to be compared.
        plain: nor is there a keyword.
        cacheable: the next call may use it: values of a traced graph are described anew each time.
    """

    function: Callable[..., Any]
    calls: Iterator[int]
    context: policy.Policy | None
    autocast: Callable[[], object | None]
    matches: Callable[[tuple[Any, ...]], bool]
    keywords: dict[str, tuple[Any, Any, Any]]
    axes: tuple[tuple[Where, int, int], ...]
    packed: tuple[tuple[Where, str], ...]
    first: Where
    place: object | None
    differentiable: tuple[Where, ...]
    training: bool | None
    apart: tuple[tuple[Where, Where], ...]
    undifferentiated: tuple[Where, ...]
    framework: Framework
    simple: bool
    plain: bool
    cacheable: bool

    def fits_in_detail(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Keywords, and what predicates consulted; `matches` has seen the positional arguments."""
        if len(kwargs) != len(self.keywords):
            return False
        for name, value in kwargs.items():
            kind, dtype, wanted = self.keywords.get(name, _OTHER_KEYWORD)
            if type(value) is not kind or (wanted is not None and value != wanted):
                return False
            if dtype is not None and value.dtype is not dtype:
                return False
        return self.simple or self._fits_consulted(args, kwargs)

    def _fits_consulted(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        def at(where: Where) -> Any:
            return args[where] if isinstance(where, int) else kwargs[where]

        for where, axis, size in self.axes:  # a loop costs 0.3 us less than any()
            if at(where).shape[axis] != size:
                return False
        for where, backend in self.packed:
            if at(where).backend != backend:
                return False
        for one, other in self.apart:
            if at(one) is at(other):
                return False
        if self.undifferentiated and self.framework.wants_gradient(list(map(at, self.undifferentiated))):
            return False
        if self.place is not None and self.framework.place_of(at(self.first)) != self.place:
            return False
        return (
            self.training is None or self.framework.wants_gradient(list(map(at, self.differentiable))) == self.training
        )


def make(
    spec: OpSpec,
    arguments: Mapping[str, Any],
    framework: Framework | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Plan, Callable[..., Any]]:
    """Decide which kernel runs a call of these arguments, bound and as they came: for later calls, and for this one,
    which has been held against the spec.

    Raises:
        TypeError, ValueError: the call breaks the op's own rules.
        NoBackendError: nobody accepts it, which the ledger counts.
    """
    call = describe(spec, arguments, framework)
    for declared in spec.inputs:
        if isinstance(arguments[declared.name], TensorSpec):
            rule, advice = "a tensor", "TensorSpecs are for explain"
            raise argument_error(spec.name, declared.name, rule, "a TensorSpec", advice=advice, kind=TypeError)
    assert framework is not None
    try:
        chosen, reason = select.select(call)
    except NoBackendError as error:
        ledger().counter(spec.name, "none", f"refused: {str(error).splitlines()[0]}").add()
        raise
    assert chosen.kernel is not None
    function = kernel_function.for_call(chosen.kernel, call)
    if not chosen.kernel.checks_sizes:
        kernel_function.require_writable(spec, arguments)
    later = kernel_function.for_later(function, chosen.kernel, spec)
    calls = ledger().counter(spec.name, chosen.backend, reason).calls
    return _remembered(later, calls, call, framework, args, kwargs), function


def _remembered(
    function: Callable[..., Any],
    calls: Iterator[int],
    call: Call,
    framework: Framework,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Plan:
    order = list(call.spec.parameters.parameters)
    given: dict[str, tuple[Where, Any]] = {order[i]: (i, value) for i, value in enumerate(args)}
    given |= {name: (name, value) for name, value in kwargs.items()}
    looks = {name: _looks(value, name in call.tensors) for name, (_, value) in given.items()}
    read = call.consulted & call.values.keys()
    axes = tuple((given[name][0], axis, size) for name, axis, size in _consulted_axes(call))
    packers = {name: tensor.packed_by for name, tensor in call.tensors.items()}
    packed = tuple((given[name][0], packer) for name, packer in packers.items() if packer is not None)
    tensors = {name: given[name] for name, packer in packers.items() if packer is None}
    first, value = next(iter(tensors.values()))
    place = framework.place_of(value)
    training = call.wants_gradient if "training" in call.consulted else None
    written = [tensors[name][0] for name in call.spec.mutates if name in tensors]
    apart = tuple(itertools.combinations(written, 2))
    undifferentiated = tuple(
        tensors[i.name][0]
        for i in call.spec.inputs
        if i.gradient_advice and i.name in tensors and call.tensors[i.name].dtype in FLOATING
    )
    simple = not (axes or packed or place is not None or training is not None or apart or undifferentiated)
    return Plan(
        function=function,
        calls=calls,
        context=policy.current(),
        autocast=framework.autocast,
        matches=_matcher(tuple(looks[name] for name in order[: len(args)])),
        keywords={name: (*looks[name], value if name in read else None) for name, value in kwargs.items()},
        axes=axes,
        packed=packed,
        first=first,
        place=place,
        differentiable=tuple(tensors[i.name][0] for i in call.spec.inputs if i.differentiable and i.name in tensors),
        training=training,
        apart=apart,
        undifferentiated=undifferentiated,
        framework=framework,
        simple=simple,
        plain=simple and not kwargs,
        # A plan of a collective would keep its group alive, and the call takes milliseconds.
        cacheable=not (call.values.get("group") is not None or call.traced or "contiguous" in call.consulted),
    )


def _matcher(looks: tuple[Looks, ...]) -> Callable[[tuple[Any, ...]], bool]:
    """Whether arguments have these types and dtypes. Unrolled for two and three tensors: a loop costs 0.08 us each, and
    asking for the length first 0.02 us."""
    tensors = all(dtype is not None for _, dtype in looks)
    if tensors and len(looks) == 2:
        (kind0, dtype0), (kind1, dtype1) = looks

        def two(args: tuple[Any, ...]) -> bool:
            try:
                a, b = args
            except ValueError:
                return False
            return type(a) is kind0 and type(b) is kind1 and a.dtype is dtype0 and b.dtype is dtype1

        return two
    if tensors and len(looks) == 3:
        (kind0, dtype0), (kind1, dtype1), (kind2, dtype2) = looks

        def three(args: tuple[Any, ...]) -> bool:
            try:
                a, b, c = args
            except ValueError:
                return False
            if type(a) is not kind0 or type(b) is not kind1 or type(c) is not kind2:
                return False
            return a.dtype is dtype0 and b.dtype is dtype1 and c.dtype is dtype2

        return three

    def any_number(args: tuple[Any, ...]) -> bool:
        return len(args) == len(looks) and all(
            type(value) is kind and (dtype is None or value.dtype is dtype)
            for value, (kind, dtype) in zip(args, looks, strict=True)
        )

    return any_number


def _looks(value: Any, is_tensor: bool) -> Looks:
    return type(value), value.dtype if is_tensor else None


def _consulted_axes(call: Call) -> list[tuple[str, int, int]]:
    """(input, axis counted from the end, size) of every size that a predicate asked for."""
    found = []
    for declared in call.spec.inputs:
        axes = declared.shape.split()
        for position, axis in enumerate(axes):
            own = any(f"{declared.name}.{choice}" in call.consulted for choice in axis.split("|"))
            if declared.name in call.tensors and (own or axis in call.consulted) and axis != "...":
                from_end = position - len(axes)
                found.append((declared.name, from_end, call.tensors[declared.name].shape[from_end]))
    return found
