"""Calls at the edges of what a backend declares, made from its predicates: accepted inside, refused outside.

`edges` reads a kernel's conditions; nothing here knows a vendor. A call is made of `TensorSpec`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusionkit import select
from fusionkit.backend import Backend
from fusionkit.capability import (
    ForwardOnly,
    InverseRoot,
    LeftOut,
    MultipleOf,
    Not,
    OneOf,
    OnValue,
    Predicate,
    Present,
    Training,
    When,
)
from fusionkit.dtypes import FLOATING
from fusionkit.ops import load_spec
from fusionkit.spec import GroupSpec, OpSpec, TensorSpec

SIZES = {
    "...": 3,
    "hidden_size": 64,
    "batch_size": 2,
    "seq_len": 5,
    "q_len": 5,
    "kv_len": 5,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position": 9,
    "num_bounds": 2,
    "world_size": 2,
    "in_features": 256,
    "out_features": 256,
}
PRESENT = object()


@dataclass(frozen=True)
class Edge:
    """One call, what was asked of it, and whether the backend declares to take it."""

    backend: str
    op: str
    predicate: Predicate
    arguments: dict[str, Any]
    training: bool
    accepted: bool

    def __str__(self) -> str:
        shown = "-".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.backend}-{self.op}-{'in' if self.accepted else 'out'}-{'training-' * self.training}{shown}"


def is_of_the_arguments(predicate: Predicate) -> bool:
    """Not of what the process did before, nor of a graph being traced: no TensorSpec tells those."""
    asked = {subject for each in (predicate, *predicate.children()) for subject in each.subjects()}
    return not predicate.by_process and "traced" not in asked


def edges(backend: Backend) -> list[Edge]:
    found = []
    for op, kernel in backend.kernels.items():
        spec = load_spec(op)
        for predicate in select.conditions(kernel, op):
            if not is_of_the_arguments(predicate):
                continue
            for changes, accepted in _sides(spec, predicate):
                training = changes.get("training", False)
                made = arguments(spec, changes, kernel.dtypes[-1], f"{backend.name}:0")
                found.append(Edge(backend.name, op, predicate, made, training, accepted))
    return found


def _sides(spec: OpSpec, predicate: Predicate) -> list[tuple[dict[str, Any], bool]]:
    """(what to change in a plain call, whether the predicate then holds)."""
    if isinstance(predicate, Not):
        return [(changes, not holds) for changes, holds in _sides(spec, predicate.predicate)]
    if isinstance(predicate, When):
        given = next(changes for changes, holds in _sides(spec, predicate.condition) if holds)
        return [({**given, **changes}, holds) for changes, holds in _sides(spec, predicate.then)]
    if isinstance(predicate, Present):
        return [({predicate.argument: PRESENT}, True)]
    if isinstance(predicate, Training):
        return [({"training": True}, True), ({"training": False}, False)]
    if isinstance(predicate, ForwardOnly):
        return [({"training": False}, True), ({"training": True}, False)]
    if isinstance(predicate, LeftOut):
        return [({}, True), ({predicate.argument: _other(spec, predicate)}, False)]
    if isinstance(predicate, InverseRoot):
        exact = SIZES[predicate.second] ** -0.5
        return [({predicate.first: value}, value == exact) for value in (exact, 0.99 * exact, 1.01 * exact)]
    if isinstance(predicate, OnValue):
        inside, outside = _values(spec, predicate)
        sides = [(value, True) for value in inside] + [(value, False) for value in outside]
        return [({predicate.subject: value}, holds) for value, holds in sides]
    raise TypeError(f"no edges are known of {type(predicate).__name__}: {predicate}")


def _other(spec: OpSpec, predicate: LeftOut) -> Any:
    """What the argument is where it is not its default."""
    if predicate.argument in {declared.name for declared in spec.inputs}:
        return PRESENT
    if predicate.argument == "group":
        return GroupSpec(SIZES["world_size"])
    if isinstance(predicate.default, bool):
        return not predicate.default
    return predicate.default + 1 if isinstance(predicate.default, int) else (predicate.default or 0) + 0.5


def _values(spec: OpSpec, predicate: OnValue) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    inside, outside = predicate.boundaries()
    if isinstance(predicate, MultipleOf):  # odd sizes break some ops' own rules
        outside = (*outside, predicate.factor // 2, predicate.factor + predicate.factor // 2)
    if isinstance(predicate, OneOf) and predicate.subject.endswith(".dtype"):
        declared = spec.input(predicate.subject.partition(".")[0]).dtypes
        possible = FLOATING if set(declared) & {i.name for i in spec.inputs} else declared
        outside = tuple(dtype for dtype in possible if dtype not in inside)
    elif isinstance(predicate, OneOf) and isinstance(predicate.allowed[0], bool):
        outside = (not predicate.allowed[0],)
    elif isinstance(predicate, OneOf) and predicate.subject.endswith(".packed_by"):
        inside, outside = (None,), ("eager",)
    return inside, outside


def arguments(spec: OpSpec, changes: dict[str, Any], dtype: str, device: str) -> dict[str, Any]:
    """A call of plain sizes, with the changes: "axis", "input.axis", "input.dtype", or an argument."""
    sizes = SIZES | {name: value for name, value in changes.items() if name in SIZES}
    for name, value in changes.items():
        axis = name.partition(".")[2]
        if axis in SIZES and value > 1:
            sizes[axis] = value
    sizes["half_dim"] = sizes["head_dim"] // 2
    sizes["rows"] = changes.get("rows", 3) * sizes["world_size"]
    asked = {name.partition(".")[0] for name in changes}
    dtype = next((value for name, value in changes.items() if name.endswith(".dtype") and value in FLOATING), dtype)
    made: dict[str, Any] = {}
    for declared in spec.inputs:
        if declared.optional and declared.name not in asked:
            continue
        shape = tuple(_size(word, declared.name, sizes, changes) for word in declared.shape.split())
        default = declared.dtypes[0]
        resolved = made[default].dtype if default in made else dtype if default in FLOATING else default
        if declared.dtypes == ("float32",):
            resolved = "float32"
        made[declared.name] = TensorSpec(
            shape,
            changes.get(f"{declared.name}.dtype", resolved),
            device,
            packed_by=changes.get(f"{declared.name}.packed_by"),
        )
    if spec.collective:
        made["group"] = GroupSpec(sizes["world_size"])
    named = set(spec.parameters.parameters) - {declared.name for declared in spec.inputs}
    return made | {name: value for name, value in changes.items() if name in named}


def _size(word: str, name: str, sizes: dict[str, int], changes: dict[str, Any]) -> int:
    """Where an axis may be 1, it is, unless that input's own size was asked for."""
    axes = word.split("|")
    own = [changes[f"{name}.{axis}"] for axis in axes if f"{name}.{axis}" in changes]
    if own:
        return int(own[0])
    return 1 if "1" in axes else sizes.get(axes[0], 16)
