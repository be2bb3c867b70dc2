"""The time model fitted to measured steps of one device.

What is fitted is twofold. A dozen rates and overheads are the machine's: `machine.parameters`. And each shape of a
layer, and of a head, may differ from what they say by a factor near 1, for kernels are chosen by shape. A shape that no
row measured has the factor 1, so other models follow from the rates alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from fusionkit_planner import pipeline_schedule, training_time
from fusionkit_planner.pipeline_schedule import Durations
from fusionkit_planner.training_time import Pieces
from fusionkit_planner.validate import least_squares
from fusionkit_planner.validate.least_squares import STEP, Array, Problem
from fusionkit_planner.validate.machine import FittedMachine, parameters
from fusionkit_planner.validate.rows import Row

PARTS = ("layer forward", "layer backward", "embedding forward", "embedding backward", "head forward", "head backward",
         "send", "gradients", "update")  # fmt: skip


def shape(row: Row) -> Hashable:
    """What the kernels of a layer and of a head are chosen by."""
    a = replace(row.architecture, name="", num_hidden_layers=1)
    return (a, training_time.shape_of(row.layout), row.sequence, row.layout.recompute, row.system.name)


@dataclass(frozen=True)
class Factor:
    """By what parts of a step may differ from the machine's rates.

    Args:
        parts: which.
        key: rows with the same share a factor.
        spread: of its logarithm.
    """

    parts: slice
    key: Callable[[Row], Hashable]
    spread: float


FACTORS = (Factor(slice(0, 2), shape, 0.05), Factor(slice(4, 6), shape, 0.2))


@dataclass(frozen=True)
class Fitted:
    """One device's numbers.

    Args:
        values: by the names of `machine.parameters`.
        factors: logarithms by key, of each of FACTORS.
    """

    values: dict[str, float]
    factors: tuple[dict[Hashable, float], ...]

    def seconds(self, rows: Sequence[Row]) -> Array:
        """Of a step of each row."""
        if not rows:
            return np.zeros(0)
        parts = _parts(rows, self.values) * _factors(rows, self)
        return np.asarray((_counts(rows, parts) * parts).sum(axis=1))


def fit(rows: Sequence[Row]) -> Fitted:
    """Of rows on one device."""
    wanted = parameters(rows[0].device)
    keys = [list(dict.fromkeys(factor.key(row) for row in rows)) for factor in FACTORS]
    measured = np.log(np.array([row.seconds for row in rows], dtype=float))
    begins = np.concatenate([np.log([one.begins for one in wanted]), np.zeros(sum(map(len, keys)))])
    shared = [np.full(len(each), factor.spread) for each, factor in zip(keys, FACTORS, strict=True)]
    spreads = np.concatenate([[one.spread for one in wanted], *shared])
    ends = np.cumsum([len(wanted), *map(len, keys)])[:-1]

    def named(x: Array) -> Fitted:
        numbers, *logarithms = np.split(x, ends)
        values = {one.name: float(np.exp(number)) for one, number in zip(wanted, numbers, strict=True)}
        return Fitted(values, tuple(dict(zip(*each, strict=True)) for each in zip(keys, logarithms, strict=True)))

    def residuals(x: Array) -> Array:
        return np.asarray(np.log(named(x).seconds(rows)) - measured)

    def slopes(x: Array, _: Array) -> Array:
        return _slopes(rows, named(x))

    return named(least_squares.solve(Problem(begins, spreads, residuals, slopes, is_disturbed=True)))


def _slopes(rows: Sequence[Row], at: Fitted) -> Array:
    """While the longest path stays, a step is a sum of parts: only these are computed again for each number."""
    parts, factors = _parts(rows, at.values), _factors(rows, at)
    counts = _counts(rows, parts * factors) * factors
    whole = (counts * parts).sum(axis=1)
    columns = []
    for name, value in at.values.items():
        moved = _parts(rows, {**at.values, name: value * float(np.exp(STEP))})
        columns.append((np.log((counts * moved).sum(axis=1)) - np.log(whole)) / STEP)
    for factor, logarithms in zip(FACTORS, at.factors, strict=True):
        places = {key: place for place, key in enumerate(logarithms)}
        share = np.zeros((len(rows), len(places)))
        own = (counts * parts)[:, factor.parts].sum(axis=1) / whole
        share[np.arange(len(rows)), [places[factor.key(row)] for row in rows]] = own
        columns += list(share.T)
    return np.stack(columns, axis=1)


def _factors(rows: Sequence[Row], fitted: Fitted) -> Array:
    found = np.ones((len(rows), len(PARTS)))
    for factor, logarithms in zip(FACTORS, fitted.factors, strict=True):
        found[:, factor.parts] = np.exp([[logarithms.get(factor.key(row), 0.0)] for row in rows])
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
            training_time.gradients(row.architecture, row.layout, machine, row.system).seconds,
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
