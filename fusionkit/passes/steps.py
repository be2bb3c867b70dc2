"""Steps that a backend declares: patterns of operations and what takes their place."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionkit.errors import FusionkitError
from fusionkit.passes.pattern import Failure, Line, Match, literal, matches, parse
from fusionkit.passes.program import Operation, Program

Condition = Callable[[Program, Match], bool]
_SHAPE = re.compile(r"(?P<value>\w+)\.shape(?:\[(?P<axis>-?\d+)\])?")


class LayersDiffer(FusionkitError):
    """Some layers were matched and others not; `difference` says what stands in the first of these."""

    def __init__(self, text: str, difference: str) -> None:
        super().__init__(text)
        self.difference = difference


def _always(program: Program, match: Match) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """A pattern, and the lines that take its place, in the notation of `pattern.py`.

    Names mean what they mean in the pattern, and an input `None` is absent. `y.shape` as an attribute is the declared
    shape of a value, `y.shape[-1]` one of its sizes. Outputs that others read must be given by the new lines. A line
    that begins with `guard` is computed before all others, from inputs of the program. It gives None, or why this call
    must go through the program as it was before all passes.

    Args:
        when: what must hold besides.
    """

    pattern: str
    replacement: str
    when: Condition = _always


@dataclass(frozen=True)
class Step:
    """One named step.

    Args:
        name: as it is logged, and left out.
        rules: tried in order, each on the whole program.
        matched: what a match is, for the log.
        is_layer: a match stands for one whole layer of the model.
    """

    name: str
    rules: tuple[Rule, ...]
    matched: str
    is_layer: bool = False


@dataclass(frozen=True)
class Obstacle:
    """What the device's layer-level ops cannot do. A program with one runs op by op, and the reason is logged.

    Args:
        reason: in words; `{}` is the operation.
        found: whether an operation is such a thing.
    """

    reason: str
    found: Callable[[Program, Operation], bool]


@dataclass(frozen=True)
class Passes:
    """What a backend does with a program that is loaded for its device.

    Args:
        steps: in order.
        functions: name of an operation that a step puts in -> "module:function" over tensors; of a backend with
            `neutral_ops` the name of a custom op.
        obstacles: with one of these no step is taken.
        layer: the name of an operation of which each layer of a model has one.
        keeps_state: the device's ops keep something between the layers of a call: calls on a device take turns.
    """

    steps: tuple[Step, ...]
    functions: Mapping[str, str] = field(default_factory=dict)
    obstacles: tuple[Obstacle, ...] = ()
    layer: str = ""
    keeps_state: bool = False


def rewritten(
    program: Program, passes: Passes, without: Sequence[str] = (), num_layers: int | None = None
) -> tuple[Program, list[str]]:
    """A new program, after all steps but those left out, and a line of log for each.

    Args:
        without: names of steps; "all" for every one.
        num_layers: that the program must have, by the model's configuration; None: as many as it has.

    Raises:
        ValueError: no step is called so.
        FusionkitError: some layers were matched and others not; what differs in the first of them is named. The given
            program is as it was.
    """
    left_out = names_left_out([step.name for step in passes.steps], without)
    if reasons := [text for each in passes.obstacles if (text := _met(program, each))]:
        return program, [f"no pass is run, every op runs by itself: {reason}" for reason in reasons]
    result, log, layers = program.copy(), [], 0
    for step in passes.steps:
        if step.name in left_out:
            log.append(f"pass {step.name}: left out")
            continue
        count = sum(_apply(result, rule) for rule in step.rules)
        layers += count if step.is_layer else 0
        log.append(f"pass {step.name}: {count} x {step.matched}")
    if not {step.name for step in passes.steps if step.is_layer} <= left_out:
        _require_all_layers(result, program, passes, layers, num_layers)
    result.require_order()
    return result, log


def names_left_out(names: Sequence[str], without: Sequence[str]) -> set[str]:
    """Of passes that are called so.

    Raises:
        ValueError: no pass is called as `without` says.
    """
    for name in without:
        if name not in (*names, "all"):
            raise ValueError(f"passes: without must be of {', '.join(names)} or all, got {name!r}")
    return set(names if "all" in without else without)


def _met(program: Program, obstacle: Obstacle) -> str | None:
    found = [operation for operation in program.operations if obstacle.found(program, operation)]
    return f"{obstacle.reason} ({len(found)} times, first {found[0]})" if found else None


def _apply(program: Program, rule: Rule) -> int:
    """Replace every match that shares no operation with one before it. Returns how many."""
    taken: set[int] = set()
    count = 0
    for match in list(matches(program, rule.pattern)):
        lines = parse(rule.pattern)
        old = [each for line, each in zip(lines, match.operations, strict=True) if not line.is_context]
        if taken.isdisjoint(map(id, old)) and rule.when(program, match):
            taken.update(map(id, old))
            program.replace(old, _new(program, rule.replacement, match))
            count += 1
    program.prune()
    return count


def _new(program: Program, replacement: str, match: Match) -> list[Operation]:
    values: dict[str, int | None] = {**match.values, "None": None}
    place = next((each.place for each in match.operations if each.place), "")
    return [_operation(program, line, values, match.attributes, place) for line in parse(replacement)]


def _operation(
    program: Program, line: Line, values: dict[str, int | None], attributes: Mapping[str, Any], place: str
) -> Operation:
    inputs = tuple(values[name.rstrip("?")] for name in line.inputs)
    for name in line.outputs:
        if name not in values:
            values[name] = program.new_value()
    outputs = tuple(value for name in line.outputs if (value := values[name]) is not None)
    program.guards += outputs if line.is_guard else ()
    given = {name: _attribute(program, text, values, attributes) for name, text in line.attributes.items()}
    return Operation(line.name, inputs, outputs, given, place)


def _attribute(program: Program, text: str, values: Mapping[str, int | None], attributes: Mapping[str, Any]) -> Any:
    if found := _SHAPE.fullmatch(text):
        value = values[found["value"]]
        assert value is not None
        shape = program.types[value].shape
        return list(shape) if found["axis"] is None else shape[int(found["axis"])]
    return attributes[text] if text in attributes else literal(text)


def _require_all_layers(result: Program, program: Program, passes: Passes, layers: int, num_layers: int | None) -> None:
    there = [operation for operation in program.operations if operation.name == passes.layer]
    expected = len(there) if num_layers is None else num_layers
    left = [operation for operation in result.operations if operation.name == passes.layer]
    if layers == expected and not left:
        return
    difference = f"the program has {len(there)}"
    if left:
        failure = _first_difference(result, passes, left)
        difference = f"{failure} (layer {there.index(_attention_of(failure, result, left)) + 1}). Nothing was rewritten"
    raise LayersDiffer(
        f"passes: each of the {expected} layers must match as a whole, got {layers} that do: {difference}. Load the "
        "program without passes to run it op by op, or export the model again",
        difference,
    )


def _first_difference(result: Program, passes: Passes, left: Sequence[Operation]) -> Failure:
    """Of the pattern that is a layer and nothing more; of a longer one if every layer that is left is one."""
    patterns = [rule.pattern for step in passes.steps if step.is_layer for rule in step.rules]
    failure = Failure()
    for _, alike in itertools.groupby(sorted(patterns, key=_length), key=_length):
        found = [match for pattern in alike for match in matches(result, pattern, failure)]
        whole = {id(each) for match in found for each in match.operations}
        if not all(id(operation) in whole for operation in left):
            break
    return failure


def _length(pattern: str) -> tuple[bool, int]:
    return "with " in pattern, len(parse(pattern))


def _attention_of(failure: Failure, result: Program, left: Sequence[Operation]) -> Operation:
    """The operation, one a layer, of the layer in which an attempt failed: in what matched, or the next."""
    ids = {id(operation) for operation in failure.matched}
    start = next((n for n, each in enumerate(result.operations) if id(each) in ids), 0)
    after = {id(operation) for operation in result.operations[start:]}
    return next(
        (each for each in left if id(each) in ids), next((each for each in left if id(each) in after), left[-1])
    )
