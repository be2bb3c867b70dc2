"""The time model fitted to measured steps of one device.

What is fitted is twofold. A dozen rates and overheads are the machine's: `machine.parameters`. And each shape of a
layer, and of a head, may differ from what they say by a factor near 1, for kernels are chosen by shape. A shape that no
row measured has the factor 1, so other models follow from the rates alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from fusionkit_planner import pipeline_schedule, training_time
from fusionkit_planner.pipeline_schedule import Durations
from fusionkit_planner.training_time import Pieces
from fusionkit_planner.validate import least_squares
from fusionkit_planner.validate.least_squares import STEP, Array, Problem
from fusionkit_planner.validate.machine import FittedMachine, parameters
from fusionkit_planner.validate.rows import Row

# Of the logarithm of a shape's factor. A head's product is one, with a loss whose kernels are chosen by shape as well.
LAYER_SPREAD, HEAD_SPREAD = 0.05, 0.2
PARTS = ("layer forward", "layer backward", "embedding forward", "embedding backward", "head forward", "head backward",
         "send", "gradients", "update")  # fmt: skip
LAYER, HEAD = slice(0, 2), slice(4, 6)


@dataclass(frozen=True)
class Fitted:
    """One device's numbers.

    Args:
        values: by the names of `machine.parameters`.
        layers, heads: logarithms of the factors of shapes, of layers and of heads.
    """

    values: dict[str, float]
    layers: dict[Hashable, float]
    heads: dict[Hashable, float]

    def seconds(self, rows: Sequence[Row]) -> Array:
        """Of a step of each row."""
        if not rows:
            return np.zeros(0)
        parts = _parts(rows, self.values)
        factors = _factors(rows, self)
        return np.asarray((_counts(rows, parts * factors) * parts * factors).sum(axis=1))


def fit(rows: Sequence[Row]) -> Fitted:
    """Of rows on one device."""
    wanted = parameters(rows[0].device)
    shapes = list(dict.fromkeys(shape(row) for row in rows))
    measured = np.log(np.array([row.seconds for row in rows], dtype=float))
    shaped = [np.full(len(shapes), spread) for spread in (LAYER_SPREAD, HEAD_SPREAD)]
    begins = np.concatenate([np.log([one.begins for one in wanted]), np.zeros(2 * len(shapes))])
    spreads = np.concatenate([[one.spread for one in wanted], *shaped])

    def named(x: Array) -> Fitted:
        numbers, layers, heads = np.split(x, [len(wanted), len(wanted) + len(shapes)])
        values = {one.name: float(np.exp(number)) for one, number in zip(wanted, numbers, strict=True)}
        return Fitted(values, *(dict(zip(shapes, each.tolist(), strict=True)) for each in (layers, heads)))

    def residuals(x: Array) -> Array:
        return np.asarray(np.log(named(x).seconds(rows)) - measured)

    def slopes(x: Array, _: Array) -> Array:
        return _slopes(rows, named(x), shapes)

    return named(least_squares.solve(Problem(begins, spreads, residuals, slopes)))


def _slopes(rows: Sequence[Row], at: Fitted, shapes: Sequence[Hashable]) -> Array:
    """While the longest path stays, a step is a sum of parts: only these are computed again for each number."""
    parts, factors = _parts(rows, at.values), _factors(rows, at)
    counts = _counts(rows, parts * factors) * factors
    whole = (counts * parts).sum(axis=1)
    columns = []
    for name, value in at.values.items():
        moved = _parts(rows, {**at.values, name: value * float(np.exp(STEP))})
        columns.append((np.log((counts * moved).sum(axis=1)) - np.log(whole)) / STEP)
    places = {each: place for place, each in enumerate(shapes)}
    own = np.zeros((len(rows), len(shapes)))
    own[np.arange(len(rows)), [places[shape(row)] for row in rows]] = 1.0
    for which in (LAYER, HEAD):
        share = (counts * parts)[:, which].sum(axis=1) / whole
        columns += list((share[:, None] * own).T)
    return np.stack(columns, axis=1)


def shape(row: Row) -> Hashable:
    """What the kernels of a layer and of a head are chosen by."""
    a = replace(row.architecture, name="", num_hidden_layers=1)
    return (a, training_time.shape_of(row.layout), row.sequence, row.layout.recompute, row.system.name)


def _factors(rows: Sequence[Row], fitted: Fitted) -> Array:
    found = np.ones((len(rows), len(PARTS)))
    for place, row in enumerate(rows):
        found[place, LAYER] = np.exp(fitted.layers.get(shape(row), 0.0))
        found[place, HEAD] = np.exp(fitted.heads.get(shape(row), 0.0))
    return found


def _parts(rows: Sequence[Row], values: dict[str, float]) -> Array:
    """Seconds of each part, [rows, PARTS]."""
    machine = FittedMachine(rows[0].device, values)
    cut: dict[Hashable, Pieces] = {}
    found = np.empty((len(rows), len(PARTS)))
    for place, row in enumerate(rows):
        key = (shape(row), row.layout.copies if row.layout.pipeline > 1 else 0)
        if key not in cut:
            cut[key] = training_time.pieces(row.architecture, row.layout, row.sequence, machine, row.system)
        one = cut[key]
        count = training_time.weights(row.architecture, row.layout) / training_time.owners(row.layout)
        found[place] = (
            *(each.seconds for pair in (one.layer, one.embedding, one.head) for each in pair),
            one.send,
            training_time.gradients(row.architecture, row.layout, machine, row.system),
            machine.update_seconds(count, row.system),
        )
    return found


def _counts(rows: Sequence[Row], parts: Array) -> Array:
    """How often each part stands in a row's step: along the longest path through its pipeline."""
    found = np.zeros((len(rows), len(PARTS)))
    for place, row in enumerate(rows):
        found[place, 7:] = 1
        found[place, :7] = _path(row, tuple(parts[place]))
    return found


def _path(row: Row, parts: tuple[float, ...]) -> Array:
    layout, count = row.layout, row.architecture.num_hidden_layers
    layers = [layout.layers_of(stage, count) for stage in range(layout.pipeline)]
    if layout.pipeline == 1:
        times = layout.micro_batches
        return np.array([times * count, times * count, times, times, times, times, 0], dtype=float)
    ends = {(0, 0): 2, (layout.pipeline - 1, layout.virtual_stages - 1): 4}
    durations = [
        Durations(*(
            tuple(
                number * parts[way] + (parts[ends[stage, chunk] + way] if (stage, chunk) in ends else 0.0)
                for chunk, number in enumerate(chunks)
            )
            for way in (0, 1)
        ))
        for stage, chunks in enumerate(layers)
    ]  # fmt: skip
    path = pipeline_schedule.longest_path(durations, layout.micro_batches, parts[6])
    found: dict[int, float] = defaultdict(float)
    for (stage, chunk, is_forward), times in path.passes.items():
        way = 0 if is_forward else 1
        found[way] += times * layers[stage][chunk]
        if (stage, chunk) in ends:
            found[ends[stage, chunk] + way] += times
    found[6] = path.sends
    return np.array([found[place] for place in range(7)])
