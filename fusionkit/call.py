"""One call as the core sees it: each argument's dtype, shape and device, and the sizes of the named axes.

Checking a call against its spec and judging a kernel's predicates both read this and nothing else, so that tensors,
`TensorSpec`s and the symbolic values of a traced graph are treated alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusionkit import frameworks
from fusionkit.dtypes import FLOATING, QUANTIZED
from fusionkit.errors import argument_error
from fusionkit.frameworks import Framework, framework_of
from fusionkit.spec import UNKNOWN, Input, OpSpec, TensorSpec


@dataclass
class Call:
    """The arguments of one call, described.

    Args:
        spec: the op's.
        tensors: a description for each tensor argument that is present.
        values: every other argument, defaults included.
        framework: "paddle", "numpy", "torch", or None when only `TensorSpec`s were given.
        device: "cpu", "toy:0", ...
        wants_gradient: gradients are enabled, and some input requires one. Decisions read it as `training`.
        traced: some tensor is a value of a graph being traced.
        elsewhere: the question is about a device that no tensor is on, present or not: `explain` alone asks so.
        consulted: subjects whose value decided something; what a cached decision depends on.
    """

    spec: OpSpec
    tensors: Mapping[str, TensorSpec]
    values: Mapping[str, Any]
    framework: str | None
    device: str
    wants_gradient: bool
    traced: bool = False
    elsewhere: bool = False
    dims: dict[str, int] = field(default_factory=dict)
    consulted: set[str] = field(default_factory=set)
    _leading: tuple[int, ...] | None = None

    @property
    def training(self) -> bool:
        """Gradients are wanted; what was decided depends on it from now on."""
        self.consulted.add("training")
        return self.wants_gradient

    @property
    def device_type(self) -> str:
        return self.device.split(":")[0]

    def present(self, name: str) -> bool:
        return name in self.tensors or self.values.get(name) is not None

    def value(self, subject: str) -> Any:
        """The value of an axis ("hidden_size"), a property ("x.dtype", "x.contiguous"), one input's own size where the
        axis may also be 1 ("attn_mask.num_heads"), an argument ("causal"), "device_type", "framework" or "traced"."""
        if subject in ("device_type", "framework", "traced"):
            return getattr(self, subject)
        name, _, attribute = subject.partition(".")
        if attribute:
            return self._property(name, attribute)
        self.consulted.add(subject)
        if subject in self.dims:
            return self.dims[subject]
        if subject in self.values:
            return self.values[subject]
        raise KeyError(f"{self.spec.name} has no axis or argument {subject!r}; axes: {', '.join(self.dims)}")

    def _property(self, name: str, attribute: str) -> Any:
        tensor = self.tensors.get(name)
        position = axis_position(self.spec.input(name), attribute)
        self.consulted.add(attribute if position is None else f"{name}.{attribute}")
        if tensor is None:
            return None
        return getattr(tensor, attribute) if position is None else tensor.shape[position]

    def require(
        self, condition: bool, argument: str, rule: str, got: object, context: str = "", advice: str = ""
    ) -> None:
        if not condition:
            raise argument_error(self.spec.name, argument, rule, got, context, advice)

    def shape_of(self, axes: str) -> tuple[int, ...]:
        """The sizes that a shape in words has in this call."""
        names = axes.split()
        leading = self._leading if names[:1] == ["..."] else ()
        return (*(leading or ()), *(self.dims[name] for name in names if name != "..."))

    def check(self) -> None:
        """Raise the error of the first argument that breaks the spec; bind the named axes on the way.

        Raises:
            TypeError: a tensor is missing, or something else stands in its place.
            ValueError: a dtype, a rank or a size does not fit.
        """
        for declared in self.spec.inputs:
            if declared.name in self.tensors:
                self._check_dtype(declared)
                self._bind_axes(declared)
            else:
                self._check_absent(declared)
        for name, (words, fits) in self.spec.value_types.items():
            if not fits(self.values[name]):
                raise argument_error(self.spec.name, name, words, repr(self.values[name]), kind=TypeError)
        if self.spec.check is not None:
            self.spec.check(self)
        # Sizes are checked by every kernel, arguments are not: a remembered decision compares those read here.
        self.consulted &= self.values.keys()

    def _check_absent(self, declared: Input) -> None:
        got = self.values.get(declared.name)
        if got is not None or not declared.optional:
            rule = "a tensor or None" if declared.optional else "a tensor"
            shown = "None" if got is None else f"{type(got).__name__} {got!r:.60}"
            advice = "Give a tensor, or what fusionkit.pack_weight returns" if declared.packable else ""
            legend = self._legend(declared)
            raise argument_error(self.spec.name, declared.name, rule, shown, legend, advice, kind=TypeError)
        for axis in _axes(declared.shape):
            if axis.isidentifier():
                self.dims.setdefault(axis, 0)

    def _check_dtype(self, declared: Input) -> None:
        packed = self.tensors[declared.name].packed_by is not None
        dtypes = {name: tensor.dtype for name, tensor in self.tensors.items()}
        allowed = {dtypes.get(dtype, dtype) for dtype in declared.dtypes}
        got = dtypes[declared.name]
        if packed and (self.wants_gradient or got in QUANTIZED):
            return  # a gradient is refused by every backend, whatever the pack's dtype; x of any dtype takes codes
        repack = 'Pack the weight with fusionkit.pack_weight(weight, dtype="float32"), which x of any dtype takes'
        self.require(
            got in allowed,
            declared.name,
            f"of dtype {declared.describe_dtypes(dtypes)}",
            got,
            "it is packed, and a pack cannot be cast" if packed else "",
            repack if packed else declared.dtype_advice,
        )

    def _legend(self, declared: Input) -> str:
        return f"shape [{', '.join(declared.shape.split())}]"

    def _bind_axes(self, declared: Input) -> None:
        shape = self.tensors[declared.name].shape
        axes = declared.shape.split()
        rule = f"[{', '.join(axes)}]"
        named = axes[1:] if axes[:1] == ["..."] else axes
        leading = shape[: len(shape) - len(named)] if axes[:1] == ["..."] else ()
        fits = len(shape) >= len(named) if axes[:1] == ["..."] else len(shape) == len(named)
        needed = f"{len(named)} axes are needed"
        self.require(fits, declared.name, rule, list(shape), needed, declared.shape_advice)
        if axes[:1] == ["..."]:
            self._bind_leading(declared, leading, rule)
        for axis, size in zip(named, shape[len(leading) :], strict=True):
            self._bind_axis(declared, axis, size, rule)

    def _bind_leading(self, declared: Input, leading: tuple[int, ...], rule: str) -> None:
        """The axes under "..." are the same in every input; `dims["..."]` is their product."""
        first = self._leading if self._leading is not None else leading
        known = all(UNKNOWN in pair or pair[0] == pair[1] for pair in zip(leading, first, strict=False))
        self.require(
            len(leading) == len(first) and known,
            declared.name,
            f"{rule} with ... = {list(first)}",
            list(self.tensors[declared.name].shape),
        )
        self._leading = first
        product = 1
        for size in leading:
            product = UNKNOWN if UNKNOWN in (product, size) else product * size
        self.dims["..."] = product

    def _bind_axis(self, declared: Input, axis: str, size: int, rule: str) -> None:
        if size == UNKNOWN:
            for choice in axis.split("|"):
                if choice.isidentifier():
                    self.dims.setdefault(choice, UNKNOWN)
            return
        choices = axis.split("|")
        if str(size) in choices:
            return  # "batch_size|1" with size 1 says nothing of the batch
        for choice in choices:
            if choice.isidentifier() and self.dims.get(choice, UNKNOWN) in (size, UNKNOWN):
                self.dims[choice] = size
                return
        wanted = " or ".join(f"{c} = {self.dims[c]}" if c in self.dims else c for c in choices)
        got = list(self.tensors[declared.name].shape)
        self.require(False, declared.name, f"{rule} with {wanted}", got, advice=declared.shape_advice)


def describe(
    spec: OpSpec,
    arguments: Mapping[str, Any],
    framework: Framework | None,
    device: str | None = None,
    training: bool | None = None,
) -> Call:
    """The call in the core's terms, held against its spec. `device` and `training` are the tensors' own where None.

    Raises:
        TypeError, ValueError: of the first argument that breaks the spec.
    """
    live = {i.name: arguments[i.name] for i in spec.inputs if framework_of(type(arguments[i.name])) is not None}
    found = {i.name: _describe(i.packable, arguments[i.name], framework) for i in spec.inputs}
    described = {name: each for name, each in found.items() if each is not None}
    _require_apart(spec, live)
    for declared in spec.inputs:
        if framework is not None and declared.name in live and declared.gradient_advice and training is not False:
            _require_no_gradient(spec, declared, described[declared.name].dtype, live[declared.name], framework)
    if training is None:
        wanting = [tensor for name, tensor in live.items() if spec.input(name).differentiable]
        training = framework is not None and framework.wants_gradient(wanting)
    where = _device(spec, described, framework) if device is None else device
    call = Call(
        spec=spec,
        tensors=described,
        values={name: value for name, value in arguments.items() if name not in described},
        framework=framework.NAME if framework else None,
        device=where,
        wants_gradient=training,
        traced=framework is not None and any(map(framework.is_symbolic, live.values())),
        elsewhere=(device is not None or not live) and _is_elsewhere(where, spec, described, live, framework),
    )
    call.check()
    return call


def _describe(packable: bool, value: Any, framework: Framework | None) -> TensorSpec | None:
    if isinstance(value, TensorSpec):
        return value
    if framework is not None and framework_of(type(value)) is framework:
        return framework.describe(value)
    if packable and hasattr(value, "describe_packed"):  # a PackedWeight
        packed: TensorSpec = value.describe_packed()
        return packed
    return None


def _require_apart(spec: OpSpec, live: Mapping[str, Any]) -> None:
    """What the op writes must be several tensors: one would end as a mixture of both. Views are not seen through."""
    for first, second in itertools.combinations([name for name in spec.mutates if name in live], 2):
        if live[first] is live[second]:
            rule = f"another tensor than {first}"
            raise argument_error(
                spec.name, second, rule, "the same one", "both are written", "Give each its own memory"
            )


def _require_no_gradient(spec: OpSpec, declared: Input, dtype: str, tensor: Any, framework: Framework) -> None:
    """A value of a graph may carry the mark without anybody who wants the gradient."""
    floating = dtype in FLOATING and not framework.is_symbolic(tensor)
    if floating and framework.wants_gradient([tensor]):
        rule, advice = "a tensor without a gradient", declared.gradient_advice
        raise argument_error(spec.name, declared.name, rule, "one that requires a gradient", advice=advice)


def _is_elsewhere(
    where: str,
    spec: OpSpec,
    described: Mapping[str, TensorSpec],
    live: Mapping[str, Any],
    framework: Framework | None,
) -> bool:
    """Whether a device is of another type than where the tensors are, or, without tensors, than the current one."""
    here = _device(spec, {name: described[name] for name in live}, framework)
    return where.partition(":")[0] != here.partition(":")[0]


def _device(spec: OpSpec, described: Mapping[str, TensorSpec], framework: Framework | None) -> str:
    """The one device that all tensors are on; the framework's current one where none says."""
    placed = {name: tensor.device for name, tensor in described.items() if tensor.device is not None}
    if not placed:
        return framework.current_device() if framework else frameworks.default_device()
    first, device = next(iter(placed.items()))
    for name, other in placed.items():
        if other != device:
            raise argument_error(spec.name, name, f"on {device}, where {first} is", other, advice="Move it there first")
    return device


def axis_position(declared: Input, axis: str) -> int | None:
    """Where the input has this axis, counted from the end."""
    words = declared.shape.split()
    found = (position for position, word in enumerate(words) if axis in word.split("|"))
    position = next(found, None)
    return None if position is None else position - len(words)


def _axes(shape: str) -> list[str]:
    return [choice for axis in shape.split() for choice in axis.split("|")]
