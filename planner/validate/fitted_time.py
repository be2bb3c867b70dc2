"""The time model fitted to measured steps of one device.

What is fitted is twofold. A dozen rates and overheads are the machine's: `machine.parameters`. And each kind of a part,
such as a layer of one shape, may differ from what they say by a factor near 1: `kinds.FACTORS`. A kind that no row
measured has the factor 1, so other models follow from the rates alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from fusionkit_planner import pipeline_schedule, training_time
from fusionkit_planner.layout import Layout
from fusionkit_planner.pipeline_schedule import Durations
from fusionkit_planner.validate import least_squares
from fusionkit_planner.validate.kinds import FACTORS, PARTS, Kinds
from fusionkit_planner.validate.least_squares import STEP, Array, Problem
from fusionkit_planner.validate.machine import NODE, parameters
from fusionkit_planner.validate.rows import Row


@dataclass(frozen=True)
class Fitted:
    """One device's numbers.

    Args:
        values: by the names of `machine.parameters`.
        factors: logarithms by kind, of each of FACTORS.
        noise: of a fitted row's logarithm, by whether it ran on several nodes.
    """

    values: dict[str, float]
    factors: tuple[dict[Hashable, float], ...]
    noise: dict[bool, float] = field(default_factory=dict)

    def seconds(self, rows: Sequence[Row]) -> Array:
        """Of a step of each row."""
        if not rows:
            return np.zeros(0)
        kinds = Kinds(rows)
        return _seconds(kinds, kinds.parts(self.values)[..., 0], self.factors)


Logarithms = tuple[dict[Hashable, float], ...]


def fit(rows: Sequence[Row]) -> Fitted:
    """Of rows on one device."""
    kinds, wanted = Kinds(rows), parameters(rows[0].device)
    known = [list(dict.fromkeys(each)) for each in kinds.of]
    measured = np.log(np.array([row.seconds for row in rows], dtype=float))
    has_many_nodes = [row.layout.devices > NODE for row in rows]
    begins = np.log([one.begins for one in wanted])
    spreads = np.array([one.spread for one in wanted])
    narrow = np.concatenate([np.full(len(each), factor.spread) for each, factor in zip(known, FACTORS, strict=True)])

    def values(x: Array) -> dict[str, float]:
        return {one.name: float(np.exp(number)) for one, number in zip(wanted, x, strict=False)}

    def logarithms(x: Array) -> Logarithms:
        each = np.split(x, np.cumsum([len(one) for one in known])[:-1])
        return tuple(dict(zip(*pair, strict=True)) for pair in zip(known, each, strict=True))

    def residuals(x: Array) -> Array:
        rates, factors = np.split(x, [len(wanted)])
        parts = kinds.parts(values(rates))[..., 0]
        return np.asarray(np.log(_seconds(kinds, parts, logarithms(factors))) - measured)

    def slopes(x: Array, _: Array) -> Array:
        rates, factors = np.split(x, [len(wanted)])
        return _slopes(kinds, values(rates), logarithms(factors))

    everything = np.concatenate([begins, np.zeros(len(narrow))]), np.concatenate([spreads, narrow])
    problem = Problem(*everything, residuals, slopes, np.array(has_many_nodes, dtype=np.int64), is_disturbed=True)
    found = least_squares.solve(problem)
    rates, factors = np.split(found.numbers, [len(wanted)])
    return Fitted(values(rates), logarithms(factors), dict(zip(has_many_nodes, found.noise.tolist(), strict=True)))


def _seconds(kinds: Kinds, parts: Array, logarithms: Logarithms) -> Array:
    parts = parts * kinds.factors(logarithms)
    return np.asarray((_counts(kinds.rows, parts) * parts).sum(axis=1))


def _slopes(kinds: Kinds, values: dict[str, float], logarithms: Logarithms) -> Array:
    """While the longest path stays, a step is a sum of parts: only these are computed again, all numbers at once."""
    moves = np.exp(STEP * np.eye(len(values) + 1)[1:])  # the first of each row stays
    moved = kinds.parts({name: value * move for (name, value), move in zip(values.items(), moves, strict=True)})
    factors = kinds.factors(logarithms)
    counts = _counts(kinds.rows, moved[..., 0] * factors) * factors
    steps = np.log(np.einsum("rp,rpn->rn", counts, moved))
    of_rates = (steps[:, 1:] - steps[:, :1]) / STEP
    return np.concatenate([of_rates, _factor_slopes(kinds, moved[..., 0], logarithms)], axis=1)


def _factor_slopes(kinds: Kinds, parts: Array, logarithms: Logarithms) -> Array:
    """The share of a row's step that a factor is of."""
    parts = parts * kinds.factors(logarithms)
    taken = _counts(kinds.rows, parts) * parts
    columns: list[Array] = []
    for factor, of_rows, known in zip(FACTORS, kinds.of, logarithms, strict=True):
        places = {kind: place for place, kind in enumerate(known)}
        share = np.zeros((len(of_rows), len(places)))
        own = taken[:, factor.parts].sum(axis=1) / taken.sum(axis=1)
        share[np.arange(len(of_rows)), [places[kind] for kind in of_rows]] = own
        columns.append(share)
    return np.concatenate(columns, axis=1)


def _counts(rows: Sequence[Row], parts: Array) -> Array:
    """How often each part stands in a row's step: along the longest path through its pipeline."""
    found = np.ones((len(rows), len(PARTS)))
    for place, row in enumerate(rows):
        cut, taken = training_time.cut_of(row.layout), tuple(parts[place, :7].tolist())
        found[place, :7] = _path(row.architecture.num_hidden_layers, cut, taken)
    return found


@lru_cache(maxsize=4096)
def _path(count: int, layout: Layout, parts: tuple[float, ...]) -> tuple[float, ...]:
    """Kept: rows that differ in copies alone have the same, and slopes are wanted where steps were."""
    layers = [layout.layers_of(stage, count) for stage in range(layout.pipeline)]
    if layout.pipeline == 1:
        times = layout.micro_batches
        return (times * count, times * count, times, times, times, times, 0)
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
    return tuple(found[place] for place in range(7))
