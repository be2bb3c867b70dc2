"""Patterns of operations, written as the lines of a program, and how they are found in one.

    n = fk.fusion_rms_norm(x, weight) epsilon=epsilon
    q, k, v = split(qkv)
    with y = toy.layer(x, *) flag=1

A name stands for one value, wherever it occurs, and an attribute's name for one number. `_` is an output that nobody
reads. `bias?` may be absent, and `*` stands for any further inputs. A line that begins with `with` must be there and is
kept; the others are replaced together, or none of them. Views (a reshape, a cast to the same dtype) and constant inputs
are not written down. Attributes that a line does not name may have any value.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fusionkit.passes.program import Operation, Program

_LINE = re.compile(
    r"(?P<first>with |guard )?(?P<outputs>[\w, ]+) = (?P<name>[\w.]+)\((?P<inputs>[^)]*)\)(?P<attributes>.*)"
)
REST, UNREAD = "*", "_"
_WHOLE = 1000  # deeper than any pattern has lines


@dataclass(frozen=True)
class Line:
    text: str
    outputs: tuple[str, ...]
    name: str
    inputs: tuple[str, ...]
    attributes: dict[str, str]
    is_context: bool
    is_guard: bool


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: the operations of its lines, values by name and attributes by name."""

    operations: tuple[Operation, ...] = ()
    values: dict[str, int | None] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Failure:
    """The attempt that came furthest: how many lines it matched, the line that did not, and what stands there."""

    depth: int = -1
    line: str = ""
    matched: tuple[Operation, ...] = ()
    after: Operation | None = None
    found: tuple[Operation, ...] = ()

    def keep(self, depth: int, line: str, matched: tuple[Operation, ...], after: Any, found: Any) -> None:
        if depth > self.depth:
            self.depth, self.line, self.matched, self.after, self.found = depth, line, matched, after, tuple(found)

    def __str__(self) -> str:
        found = ", ".join(map(str, self.found)) or "nothing of the kind"
        return f"after {self.after} must come {self.line}, got {found}"


@cache
def parse(text: str) -> tuple[Line, ...]:
    return tuple(_line(line.strip()) for line in text.strip().splitlines())


def _line(text: str) -> Line:
    found = _LINE.fullmatch(text)
    if found is None:
        raise ValueError(f"passes: a line of a pattern must be 'y = op(x) attribute=value', got {text!r}")
    attributes = dict(pair.split("=", 1) for pair in found["attributes"].split())
    outputs, inputs = (tuple(re.findall(r"[\w?*]+", found[part])) for part in ("outputs", "inputs"))
    first = found["first"]
    return Line(text, outputs, found["name"], inputs, attributes, first == "with ", first == "guard ")


def literal(text: str) -> Any:
    """The number or word that an attribute's text stands for; None for a name."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def matches(program: Program, text: str, failure: Failure | None = None) -> Iterator[Match]:
    """Every place of a pattern, each as a whole. `failure` learns of the attempt that came furthest."""
    lines = parse(text)
    failure = failure or Failure()
    for match in _complete(program, lines, Match(), failure):
        outside = _reader_outside(program, lines, match)
        if outside is None:
            yield match
        else:
            text = "no reader besides those of the layer"
            failure.keep(_WHOLE, text, match.operations, outside[0], outside[1:])


def _complete(program: Program, lines: tuple[Line, ...], match: Match, failure: Failure) -> Iterator[Match]:
    depth = len(match.operations)
    if depth == len(lines):
        yield match
        return
    line = lines[depth]
    candidates = list(_candidates(program, line, match))
    longer = [found for each in candidates if (found := _with(program, line, each, match)) is not None]
    if not longer:
        shown = (each for each in candidates if not program.is_view(each))
        failure.keep(depth, line.text, match.operations, match.operations[-1] if depth else None, shown)
    for found in longer:
        yield from _complete(program, lines, found, failure)


def _candidates(program: Program, line: Line, match: Match) -> Iterator[Operation]:
    """Who reads the first input that is known already, or any operation."""
    for name in line.inputs:
        value = match.values.get(name)
        if value is not None and value not in program.parameters:
            yield from dict.fromkeys(program.readers_through_views(value))
            return
    yield from (operation for operation in program.operations if operation.name == line.name)


def _with(program: Program, line: Line, operation: Operation, match: Match) -> Match | None:
    """The match with one line more, if the operation is what the line says."""
    given = [program.source(value) for value in operation.inputs if value not in program.constants]
    wanted = [name.rstrip("?") for name in line.inputs if name != REST]
    optional = [name for name in line.inputs if name.endswith("?")]
    if operation.name != line.name or len(given) < len(wanted) - len(optional):
        return None
    if any(value is not None for value in given[len(wanted) :]) and REST not in line.inputs:
        return None
    given += [None] * (len(wanted) - len(given))
    pairs = [*zip(wanted, given, strict=False), *zip(line.outputs, operation.outputs, strict=False)]
    values = dict(match.values)
    for name, value in pairs:
        if name != UNREAD and values.setdefault(name, value) != value:
            return None
    attributes = dict(match.attributes)
    for name, text in line.attributes.items():
        value, wanted_value = operation.attributes.get(name), literal(text)
        if wanted_value is None:
            wanted_value = attributes.setdefault(text, value)
        if name not in operation.attributes or value != wanted_value:
            return None
    return Match((*match.operations, operation), values, attributes)


def _reader_outside(program: Program, lines: tuple[Line, ...], match: Match) -> tuple[Operation, Operation] | None:
    """An operation inside, and one outside that reads of it what is not free."""
    replaced = [each for line, each in zip(lines, match.operations, strict=True) if not line.is_context]
    inside = {id(operation) for operation in replaced}
    free = {value for line, each in zip(lines, match.operations, strict=True) for value in _free(line, each, lines)}
    for operation in replaced:
        for value in set(operation.outputs) - free:
            if value in program.outputs:
                return operation, Operation("the program's output", (value,), ())
            for reader in program.readers_through_views(value):
                if id(reader) not in inside and not program.is_view(reader):
                    return operation, reader
    return None


def _free(line: Line, operation: Operation, lines: tuple[Line, ...]) -> tuple[int, ...]:
    """Outputs that may be read outside: those that no line reads which is replaced, if they have a name."""
    read = {name.rstrip("?") for each in lines if not each.is_context for name in each.inputs}
    named = zip(line.outputs, operation.outputs, strict=False)
    return tuple(value for name, value in named if name != UNREAD and (line.is_context or name not in read))
