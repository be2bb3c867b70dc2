"""A program's file as Paddle 3.3 writes it: its entries, and the same as a `Program` that passes rewrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusionkit.passes import neutral
from fusionkit.passes.program import Operation, Program, Type
from fusionkit.passes.reading import CONSTANTS, of_custom_op

Entry = dict[str, Any]  # an operation: "#" dialect and name, "I" inputs, "O" outputs, "A" attributes
PARAMETER = "p"  # Paddle's own short form, with the parameter's name as the last attribute
# Attributes that custom ops got after programs had been written: what such a program means. Paddle needs each one.
_LATER: dict[str, dict[str, bool | int]] = {
    "fusionkit_fused_linear": {"batch_invariant": False},
    "fusionkit_fused_linear_bias": {"batch_invariant": False},
    "fusionkit_paged_attention_": {"batch_invariant": False, "window": 0},
    "fusionkit_quantized_linear": {"rounds_x": False},
}
_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "ui8": "uint8"}
_KINDS = {bool: "0.a_bool", int: "0.a_i64", float: "0.a_f32", str: "0.a_str"}


def entries(file: Mapping[str, Any]) -> list[Entry]:
    """Of the program's only block."""
    found: list[Entry] = file["program"]["regions"][0]["blocks"][0]["ops"]
    return found


def set_entries(file: Mapping[str, Any], ordered: Sequence[Entry]) -> None:
    file["program"]["regions"][0]["blocks"][0]["ops"] = list(ordered)


def has_branches(file: Mapping[str, Any]) -> bool:
    """Whether an entry holds others, which may read any value."""
    return any("regions" in each for each in entries(file))


def complete(file: Mapping[str, Any]) -> None:
    """Give each entry the attributes that were added after its program was written."""
    for entry in entries(file):
        for name, value in _LATER.get(name_of(entry), {}).items():
            if name not in attributes(entry):
                entry["A"].append(attribute(name, _KINDS[type(value)], value))


def name_of(entry: Entry) -> str:
    """Without the number of its dialect."""
    return str(entry["#"].rpartition(".")[2])


def attribute(name: str, kind: str, data: Any) -> Entry:
    return {"AT": {"#": kind, "D": data}, "N": name}


def attributes(entry: Entry) -> dict[str, Any]:
    return {each["N"]: each["AT"].get("D") for each in entry["A"]}


def inputs(entry: Entry) -> list[int]:
    """0 is an input that is absent."""
    return [each["%"] for each in entry.get("I", [])]


def outputs(entry: Entry) -> list[Entry]:
    """Of a parameter one, of all others a list."""
    found: Any = entry["O"]
    return [found] if isinstance(found, dict) else list(found)


def type_of(value: Entry) -> Type | None:
    """Of an output; None for a list of tensors."""
    kind = value["TT"]
    if kind["#"] != "0.t_dtensor":
        return None
    word = kind["D"][0]["#"].rpartition("t_")[2]
    return Type(_DTYPES.get(word, word), tuple(kind["D"][1]))


def input_of_bytes(value: int, name: str, shape: list[int]) -> Entry:
    kind = {"#": "0.t_dtensor", "D": [{"#": "0.t_ui8"}, shape, "NCHW", [], 0]}
    given = [
        attribute("name", "0.a_str", name),
        attribute("shape", "1.a_intarray", shape),
        attribute("dtype", "1.a_dtype", "uint8"),
        attribute("place", "1.a_place", [0, 0, ""]),
    ]
    return {"#": "1.data", "A": given, "I": [], "O": [{"%": value, "TT": kind}], "OA": [_without_gradients(1)]}


def _without_gradients(count: int) -> Entry:
    return attribute("stop_gradient", "0.a_array", [{"#": "0.a_bool", "D": True}] * count)


class Written:
    """A file without branches. `program` is what it says; `put` makes it say another one.

    Args:
        file: its JSON, which `put` changes.
    """

    def __init__(self, file: Mapping[str, Any]) -> None:
        self._file = file
        self._values = {value["%"]: value for entry in entries(file) for value in outputs(entry)}
        self._entries: dict[int, list[Entry]] = {}  # an operation's, by its first output
        types = {value: found for value, each in self._values.items() if (found := type_of(each)) is not None}
        self.program = Program([], {}, {}, {}, [], types)
        operations: list[Operation] = []
        for entry in entries(file):
            self._take(entry, operations)
        self.program.set_operations(operations)

    def _take(self, entry: Entry, operations: list[Operation]) -> None:
        name, results = name_of(entry), tuple(each["%"] for each in outputs(entry))
        if name == PARAMETER:
            self.program.parameters[results[0]] = entry["A"][-1]
        elif name == "data":
            self.program.inputs[attributes(entry)["name"]] = results[0]
        elif name == "fetch":
            self.program.outputs += inputs(entry)
        elif name in CONSTANTS:
            self.program.constants[results[0]] = attributes(entry)["value"]
        elif entry["#"] == "0.split":
            self._give_parts(entry, results, operations)
        else:
            operations.append(_operation(entry, results))
            self._entries[results[0]] = [entry]

    def _give_parts(self, entry: Entry, results: tuple[int, ...], operations: list[Operation]) -> None:
        """Paddle splits in two entries: one gives a list, the other its elements."""
        (whole,) = inputs(entry)
        at = next(number for number, each in enumerate(operations) if each.outputs == (whole,))
        operations[at] = replace(operations[at], outputs=results)
        self._entries[results[0]] = [*self._entries.pop(whole), entry]

    def put(self, program: Program, custom_ops: Mapping[str, str]) -> None:
        """Write a program that passes made of this one.

        Args:
            custom_ops: name of an operation that a pass put in -> Paddle's custom op.
        """
        kept = {id(each) for each in self.program.operations}
        read = {value for each in program.operations for value in each.inputs}
        ordered = [each for each in entries(self._file) if self._is_declaration(each, read)]
        for each in program.operations:
            ordered += self._entries[each.outputs[0]] if id(each) in kept else [self._new(each, custom_ops)]
        ordered += [each for each in entries(self._file) if name_of(each) == "fetch"]
        set_entries(self._file, ordered)

    def _is_declaration(self, entry: Entry, read: set[int | None]) -> bool:
        """Whether it comes before all operations: an input, a parameter, or a constant that one of them reads."""
        name = name_of(entry)
        return name in (PARAMETER, "data") or (name in CONSTANTS and outputs(entry)[0]["%"] in read)

    def _new(self, operation: Operation, custom_ops: Mapping[str, str]) -> Entry:
        given = {**operation.attributes, "struct_name": operation.place}
        return {
            "#": f"{self._dialect()}.{custom_ops[operation.name]}",
            "A": [attribute(name, _KINDS[type(value)], value) for name, value in given.items()],
            "I": [{"%": value or 0} for value in operation.inputs],
            "O": [self._values[value] for value in operation.outputs],
            "OA": [_without_gradients(len(operation.outputs))],
        }

    def _dialect(self) -> str:
        """The number that stands for custom ops in this file."""
        custom = (each["#"] for each in entries(self._file) if name_of(each).startswith(neutral.PREFIX))
        return str(next(custom).partition(".")[0])


def _operation(entry: Entry, results: tuple[int, ...]) -> Operation:
    name, given = name_of(entry), attributes(entry)
    place = given.pop("struct_name", "")
    name = of_custom_op(name) if name.startswith(neutral.PREFIX) else name
    return Operation(name, tuple(value or None for value in inputs(entry)), results, given, place)
