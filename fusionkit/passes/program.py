"""A static program as data: operations on numbered values, which passes rewrite before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NEUTRAL = "fk."  # before the name of a fusionkit op
RESHAPES = ("reshape", "squeeze", "unsqueeze", "flatten")  # their results hold the same elements in the same order


@dataclass(frozen=True)
class Type:
    """A value's dtype and shape; -1 is a size that only the call knows."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Operation:
    """One call.

    Args:
        name: `fk.<op>` of a fusionkit op, `<backend>.<function>` of what a pass put in, else Paddle's own name.
        inputs: values; None for an argument that is absent.
        outputs: values.
        attributes: by name.
        place: the layer of the model that made it, such as "/DecoderLayer_1/MLP/Linear/".
    """

    name: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    def __str__(self) -> str:
        return f"{self.name} at {self.place}" if self.place else self.name


@dataclass
class Program:
    """Operations in an order in which they can run.

    Args:
        inputs: name -> value, in the order of the call.
        parameters: value -> name.
        constants: value -> number, or numbers.
        outputs: values.
        types: of values, where they are known.
        guards: values that are computed first: None, or why this program cannot take the call.
    """

    operations: list[Operation]
    inputs: dict[str, int]
    parameters: dict[int, str]
    constants: dict[int, Any]
    outputs: list[int]
    types: dict[int, Type]
    guards: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last = max((*self.inputs.values(), *self.parameters, *self.constants, *self.types, -1))
        self.set_operations(self.operations)

    def set_operations(self, operations: list[Operation]) -> None:
        self.operations = operations
        self._producers = {value: each for each in operations for value in each.outputs}
        self._readers: dict[int, list[Operation]] = {}
        for each in operations:
            for value in dict.fromkeys(each.inputs):
                if value is not None:
                    self._readers.setdefault(value, []).append(each)
        self._last = max((self._last, *self._producers))

    def copy(self) -> Program:
        """Another program, which can be rewritten without changing this one."""
        return Program(
            list(self.operations),
            dict(self.inputs),
            dict(self.parameters),
            dict(self.constants),
            list(self.outputs),
            dict(self.types),
            list(self.guards),
        )

    def new_value(self) -> int:
        """One that is nowhere in the program."""
        self._last += 1
        return self._last

    def producer(self, value: int | None) -> Operation | None:
        return None if value is None else self._producers.get(value)

    def readers(self, value: int) -> list[Operation]:
        return self._readers.get(value, [])

    def is_view(self, operation: Operation) -> bool:
        """Whether the result is the first input under another shape, or in the dtype that it has already."""
        if operation.name in RESHAPES:
            return True
        types = [self.types.get(value) for value in (operation.inputs[:1] + operation.outputs) if value is not None]
        return operation.name == "cast" and len(types) == 2 and types[0] == types[1] and types[0] is not None

    def source(self, value: int | None) -> int | None:
        """The value that this one is a view of, or itself."""
        producer = self.producer(value)
        if producer is None or not self.is_view(producer):
            return value
        return self.source(producer.inputs[0])

    def readers_through_views(self, value: int) -> Iterator[Operation]:
        """Who reads a value or a view of it, the views included."""
        for operation in self.readers(value):
            yield operation
            if self.is_view(operation) and operation.inputs[0] == value:
                yield from self.readers_through_views(operation.outputs[0])

    def prune(self) -> None:
        """Leave out what nobody reads. What writes into its inputs has a reader as long as it is not replaced."""
        self.set_operations(self.leading_to(*self.outputs, *self.guards))

    def leading_to(self, *values: int) -> list[Operation]:
        """The operations that these values need, in order."""
        read, kept = set(values), []
        for operation in reversed(self.operations):
            if read & set(operation.outputs):
                kept.append(operation)
                read.update(value for value in operation.inputs if value is not None)
        return kept[::-1]

    def require_order(self) -> None:
        """Every value is there before it is read."""
        known: set[int | None] = {None, *self.inputs.values(), *self.parameters, *self.constants}
        for operation in self.operations:
            if missing := set(operation.inputs) - known:
                raise AssertionError(f"passes: {operation} reads value {missing.pop()} before it is there")
            known.update(operation.outputs)

    def replace(self, old: Sequence[Operation], new: Sequence[Operation]) -> None:
        """Put the new operations where the last of the old ones stands."""
        gone = {id(operation) for operation in old}
        last = max(number for number, operation in enumerate(self.operations) if id(operation) in gone)
        before = [each for each in self.operations[:last] if id(each) not in gone]
        self.set_operations([*before, *new, *self.operations[last + 1 :]])
