"""An op's declaration, written once: what it takes, what it means, how exact it is and what it costs.

Tests, benchmarks, error messages, tables and the command line read nothing else.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from fusionkit.dtypes import full_dtype
from fusionkit.errors import argument_error

if TYPE_CHECKING:  # NumPy takes longer to import than all of fusionkit
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any
Rounding = Callable[[Array], Array]

# packed_by of `QuantizedArrays`, without `activations` and with: a kernel says by these names that it takes them.
HELD_AS_ARRAYS, ROUNDING_ARRAYS = "arrays", "arrays that round x"
UNKNOWN = -1  # a dimension that is not known while a static graph is traced


def exact(array: Array) -> Array:
    """The rounding of the oracle: none."""
    return array


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that need not exist, for `explain`.

    Args:
        shape: dimensions; -1 where unknown.
        dtype: a name such as "bfloat16", or "bf16" for short.
        device: "cpu", "toy:0", ...; None for the framework's current device.
        contiguous: whether the last axis is dense and the others follow in row-major order.
        packed_by: the backend that packed it, for a `PackedWeight`; HELD_AS_ARRAYS or ROUNDING_ARRAYS for
            `QuantizedArrays`.
        activations: of a packed weight: "int8" if its products round x to that; None: they do not.
    """

    shape: tuple[int, ...]
    dtype: str
    device: str | None = None
    contiguous: bool = True
    packed_by: str | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        sizes = tuple(self.shape) if isinstance(self.shape, Iterable) else ()
        if sizes != self.shape and not isinstance(self.shape, list):
            raise argument_error("TensorSpec", "shape", "a tuple of sizes", repr(self.shape), kind=TypeError)
        if not all(isinstance(size, int) and size >= UNKNOWN for size in sizes):
            raise argument_error("TensorSpec", "shape", "sizes of at least 0, or -1 for unknown", repr(self.shape))
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "dtype", full_dtype(self.dtype))

    def __str__(self) -> str:
        shape = ", ".join("?" if size == UNKNOWN else str(size) for size in self.shape)
        return f"[{shape}] {self.dtype}"


@dataclass(frozen=True)
class GroupSpec:
    """A group of ranks that need not exist, for `explain` and `reference`."""

    world_size: int


@dataclass(frozen=True)
class Input:
    """A tensor argument.

    Args:
        name: the parameter of the op's signature.
        shape: axis names separated by blanks, "..." for any leading axes. The same name means the same size in every
            input. "batch|1" also takes 1; a number takes only itself; "1|2|4" one of these.
        dtypes: allowed dtype names; the name of another input stands for the dtype that it has.
        optional: None is allowed.
        differentiable: a gradient flows to it.
        packable: a `PackedWeight` may stand in its place.
        dtype_advice: what to do about another dtype.
        shape_advice: what to do about another shape.
        gradient_advice: what to do about a floating tensor that requires a gradient, which the op refuses; "" takes it.
    """

    name: str
    shape: str
    dtypes: tuple[str, ...]
    optional: bool = False
    differentiable: bool = True
    packable: bool = False
    dtype_advice: str = "Cast it first"
    shape_advice: str = ""
    gradient_advice: str = ""

    def describe_dtypes(self, dtypes: Mapping[str, str]) -> str:
        of_others = {dtypes[d]: f"{dtypes[d]} (the dtype of {d})" for d in self.dtypes if d in dtypes}
        names = [*of_others.values(), *(d for d in self.dtypes if d not in dtypes and d not in of_others)]
        return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class Output:
    """A result: its shape in the same words, and the input whose dtype it has (or a dtype).

    One with the name of an input that the op writes is that input, held to the tolerance; an input that is written
    but not returned must be exact.

    `when` names the argument that must be true for it to be returned. `replicated`: the same on all ranks, which go on
    to compute the same from it, so that its gradient is the same on all of them too and counts once.
    """

    name: str
    shape: str
    dtype: str
    when: str | None = None
    replicated: bool = False


@dataclass(frozen=True)
class Cost:
    """What one call must do at least: the numerator of every rate that a benchmark prints.

    flops counts a multiplication and an addition as two. Bytes are those of the arguments and results, each once.
    """

    flops: float
    bytes_read: float
    bytes_written: float


@dataclass(frozen=True)
class Case:
    """One call that tests, parity runs and benchmarks make.

    Args:
        name: short, with sizes: "T3xH17".
        arguments: makes the arguments by name from a generator. Floating tensors are float64; the harness rounds them
            to the dtype under test, and inputs whose only dtype is float32 to float32. Integers and scalars stay.
        llama: one of Llama 2 13B's sizes, used by benchmarks and left out of quick runs.
        keep_float32: inputs that stay float32 when the dtype under test has 16 bits (master weights).
        quantized: how the packable input is packed, in the words of `pack_weight`: dtype, group_size, symmetric,
            activations. Parity holds the result against the values that its codes stand for, and against x rounded as
            `activations` says. {}: the input is handed over as it is.
    """

    name: str
    arguments: Callable[[np.random.Generator], dict[str, Any]]
    llama: bool = False
    keep_float32: tuple[str, ...] = ()
    quantized: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A call that `fusionkit bench` times, forward and, where the op has gradients, forward with backward.

    Args:
        case: the call; too large for parity, which has the same sizes in fewer rows.
        dtypes: of the floating inputs that the case does not keep in float32.
        dims: what `cost` reads beyond the sizes of the axes.
        packed: the input that is handed over as a `PackedWeight`; then only the forward is timed.
        cold: timed with empty caches too.
        composition_bytes: what a composition of a framework's own functions holds at its peak, where that is much.
    """

    case: Case
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    dims: Mapping[str, float] = field(default_factory=dict)
    packed: str | None = None
    cold: bool = False
    composition_bytes: float = 0.0


@dataclass(frozen=True)
class InvalidCase:
    """A call that every backend must refuse, with the words that the error has to contain."""

    name: str
    arguments: Callable[[np.random.Generator], dict[str, Any]]
    error: type[Exception]
    match: str


@dataclass(frozen=True)
class Epsilons:
    """error <= count * epsilon(dtype) * max(|want|, rms(want)) for every element.

    Elements far below the root mean square are judged on its scale: they are differences of larger terms. The dtype is
    the result's own.

    Args:
        count: dtype -> how many epsilons.
        reason: where the count comes from.
        arithmetic: result -> the input whose dtype judges it instead, where the arithmetic is coarser than the result's
            storage: a float32 weight's gradient out of a 16-bit product.
    """

    count: Mapping[str, float]
    reason: str
    arithmetic: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TwiceComposition:
    """FlashAttention's rule: max error <= 2 * max error of the composition in the same dtype + some epsilons.

    Both are taken against float64; the epsilons are of the largest element.

    Args:
        reason: why this rule, and why so many epsilons.
        epsilons: half a one is the rounding of the output, and all that 16 bits get. In float32 kernel and composition
            are two orders of the same sums: 13 of 4,880 checks over 20 seeds were beyond 1 epsilon, 3 beyond 2.
    """

    reason: str
    epsilons: Mapping[str, float] = field(default_factory=lambda: {"float32": 2.0, "bfloat16": 0.5, "float16": 0.5})


@dataclass(frozen=True)
class Tolerance:
    """How far a kernel may be from the float64 reference, per direction."""

    forward: Epsilons | TwiceComposition
    backward: Epsilons | TwiceComposition | None


AmpClass = Literal["low", "float32", "keep"]


@dataclass(frozen=True)
class OpSpec:
    """The declaration of one op.

    Args:
        signature: a function with the op's parameters and docstring, and no body.
        inputs: the tensor parameters, in the order of the signature.
        outputs: the results.
        reference: float64 NumPy over all parameters plus `rounding`, which it applies after each step: `exact` makes it
            the oracle, `rounding_to(dtype)` the composition that `TwiceComposition` compares with. Returns an array or
            a tuple as the op does. With a packable input it also has `activations`: what becomes of x before the
            product.
        reference_vjp: `(grad_outputs, rounding=..., **arguments) -> {input name: gradient}`, written by hand.
            None: the op is for inference only.
        name: the op's, which is the signature's.
        parameters: the signature's, without annotations.
        value_types: for parameters that are no tensors, from the annotations: the type in words, and its test.
        cases, invalid_cases, tolerance: as their classes say.
        benchmarks: the same. The first stands for the op in `fusionkit bench --quick` and in the chart.
        cost: `cost(dims, itemsize, training)`; training: of the forward and the backward pass together.
        amp: under automatic mixed precision, "low": floating inputs are cast to the low dtype; "float32": to float32;
            "keep": they stay as they are at O1 and go low at O2.
        check: rules beyond dtype and shape: `check(call)` raises `argument_error`.
        source: where the formula comes from.
        remarks: `remarks(values)` gives what `explain` says of a call's values. values(name) is an input as a NumPy
            array, or None if it is absent or has no values.
        mutates: inputs that the op writes.
        stored: roundings that are part of the op's meaning, so that the oracle applies them too: a keyword of reference
            and reference_vjp -> the input to whose dtype it rounds. That keyword gets `rounding_to(dtype)`.
        collective: the ranks of an argument `group` make the call together. Cases, reference and reference_vjp then
            hold every tensor, result and gradient as a list with one entry per rank.
        group_cases: of an op whose `group` may be None: calls with one, which hold the same lists.
    """

    signature: Callable[..., Any]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    reference: Callable[..., Any]
    reference_vjp: Callable[..., dict[str, Any]] | None
    cases: Sequence[Case]
    invalid_cases: Sequence[InvalidCase]
    tolerance: Tolerance
    cost: Callable[[Mapping[str, Any], int, bool], Cost]
    amp: AmpClass
    source: str
    check: Callable[[Any], None] | None = None
    remarks: Callable[[Callable[[str], Array | None]], tuple[str, ...]] | None = None
    mutates: tuple[str, ...] = ()
    benchmarks: Sequence[Benchmark] = ()
    stored: Mapping[str, str] = field(default_factory=dict)
    collective: bool = False
    group_cases: Sequence[Case] = ()
    name: str = field(init=False)
    parameters: inspect.Signature = field(init=False)
    value_types: Mapping[str, tuple[str, Callable[[Any], bool]]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.signature.__name__)
        declared = inspect.signature(self.signature).parameters.values()
        plain = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in declared])
        object.__setattr__(self, "parameters", plain)
        hints = get_type_hints(self.signature)
        types = {name: _value_type(hints[name]) for name in plain.parameters if hints[name] is not Any}
        object.__setattr__(self, "value_types", types)
        inputs = {i.name for i in self.inputs}
        for name, parameter in plain.parameters.items():  # a plan compares a positional argument by its type alone
            if name not in inputs and parameter.kind is not parameter.KEYWORD_ONLY:
                raise TypeError(f"{self.name}: {name} must be keyword-only, as it is no input. Put it behind *")
        names = [name for name in self.parameters.parameters if name in inputs]
        if names != [i.name for i in self.inputs]:
            raise TypeError(f"{self.name}: inputs must be parameters of the signature, in its order, got {self.inputs}")

    @property
    def all_cases(self) -> tuple[Case, ...]:
        """Those of one rank and those of a group."""
        return (*self.cases, *self.group_cases)

    def input(self, name: str) -> Input:
        return next(i for i in self.inputs if i.name == name)


def _value_type(hint: Any) -> tuple[str, Callable[[Any], bool]]:
    """A bool is no number here: `epsilon=True` is a mistake."""
    choices = get_args(hint) or (hint,)
    names = {bool: "a bool", int: "an int", float: "a number", type(None): "None"}
    kinds = {bool: bool, int: numbers.Integral, float: numbers.Real, type(None): type(None)}
    words = " or ".join(names[choice] for choice in choices)

    def fits(value: Any) -> bool:
        if isinstance(value, bool):
            return bool in choices
        return any(isinstance(value, kinds[choice]) for choice in choices)

    return words, fits
