"""Rows by kind: what several of them share is priced once, and may differ from a machine's rates by a common factor.

Libraries choose kernels by shape, and algorithms of a collective by its bytes and ranks. So each part of a step has a
kind, and each kind a factor near 1. A kind that no fitted row has keeps the factor 1.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fusionkit_planner import passes, training_time
from fusionkit_planner.exchange import distance_of_stages, gradients, owners, weights
from fusionkit_planner.validate.least_squares import Array
from fusionkit_planner.validate.machine import NODE, FittedMachine
from fusionkit_planner.validate.rows import Row

PARTS = ("layer forward", "layer backward", "embedding forward", "embedding backward", "head forward", "head backward",
         "send", "gradients", "update")  # fmt: skip


def shape(row: Row) -> Hashable:
    """What the kernels of a layer, of the embedding and of the head are chosen by."""
    a = replace(row.architecture, name="", num_hidden_layers=1)
    return a, training_time.shape_of(row.layout), row.sequence, row.layout.recompute, row.system.name


def message(row: Row) -> Hashable:
    """Elements that go from a stage to the next, and whether they leave the node."""
    divides = row.layout.sequence_parallel or row.system.divides_sends
    sent = passes.tokens(row.layout, row.sequence) * row.architecture.hidden_size
    distance = distance_of_stages(row.layout, row.system)
    return sent / (row.layout.tensor if divides else 1), distance < NODE


def exchange(row: Row) -> Hashable:
    """Elements whose gradients a device sends, to how many, and how many such groups share a node's cards."""
    layout = row.layout
    members = layout.copies * layout.context
    groups = min(layout.tensor, NODE) if members * layout.tensor > NODE else 0
    return weights(row.architecture, layout), members, owners(layout), groups


def update(row: Row) -> Hashable:
    """Elements that an owner updates."""
    return weights(row.architecture, row.layout) / owners(row.layout)


@dataclass(frozen=True)
class Factor:
    """By what parts of a step may differ from the machine's rates.

    Args:
        parts: which.
        kind: rows with the same share a factor.
        spread: of its logarithm.
    """

    parts: slice
    kind: Callable[[Row], Hashable]
    spread: float


FACTORS = (
    Factor(slice(0, 2), shape, 0.05),
    Factor(slice(2, 4), shape, 0.1),
    Factor(slice(4, 6), shape, 0.2),
    Factor(slice(6, 7), message, 0.1),
    Factor(slice(7, 8), exchange, 0.1),
    Factor(slice(8, 9), update, 0.1),
)


class Kinds:
    """Of rows on one device.

    Args:
        of: for each of FACTORS, the kind of each row.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows, self.of = rows, [[factor.kind(row) for row in rows] for factor in FACTORS]
        copies = [row.layout.copies if row.layout.pipeline > 1 else 0 for row in rows]
        self._passes = _firsts(list(zip(self.of[0], copies, strict=True)))
        self._ends = _firsts([_end(row) for row in rows])

    def parts(self, values: Mapping[str, Any]) -> Array:
        """Seconds of each part, [rows, PARTS, n].

        Args:
            values: of `machine.parameters` by name, each a number or [n] of them.
        """
        machine = FittedMachine(self.rows[0].device, values)
        count = np.broadcast_shapes((1,), *(np.shape(value) for value in values.values()))[0]

        def table(firsts: tuple[list[int], list[int]], price: Callable[[Row, FittedMachine], list[Any]]) -> Array:
            places, kinds = firsts
            priced = [[np.broadcast_to(part, count) for part in price(self.rows[place], machine)] for place in places]
            return np.asarray(np.array(priced)[kinds])

        return np.concatenate([table(self._passes, _pass_parts), table(self._ends, _end_parts)], axis=1)

    def factors(self, logarithms: Sequence[Mapping[Hashable, float]]) -> Array:
        """Of each part, [rows, PARTS]."""
        found = np.ones((len(self.rows), len(PARTS)))
        for factor, kinds, known in zip(FACTORS, self.of, logarithms, strict=True):
            found[:, factor.parts] = np.exp([[known.get(kind, 0.0)] for kind in kinds])
        return found


def _firsts(kinds: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """(the place of each kind's first row, for each row the number of its kind)."""
    firsts: dict[Hashable, int] = {}
    for place, kind in enumerate(kinds):
        firsts.setdefault(kind, place)
    numbers = {kind: number for number, kind in enumerate(firsts)}
    return list(firsts.values()), [numbers[kind] for kind in kinds]


def _end(row: Row) -> Hashable:
    """What the exchange of gradients and the update depend on."""
    batches = row.layout.micro_batches if row.layout.stage >= 2 else 1
    return row.architecture, replace(row.layout, micro_batch=1, micro_batches=batches), row.system.name


def _pass_parts(row: Row, machine: FittedMachine) -> list[Any]:
    one = training_time.pieces(row.architecture, row.layout, row.sequence, machine, row.system)
    return [*(each.seconds for pair in (one.layer, one.embedding, one.head) for each in pair), one.send]


def _end_parts(row: Row, machine: FittedMachine) -> list[Any]:
    count = weights(row.architecture, row.layout) / owners(row.layout)
    sent = gradients(row.architecture, row.layout, machine, row.system)
    return [sent.seconds, machine.update_seconds(count, row.system)]
