"""How far off predictions are: errors, and whether the layout that is put first is a good one.

regret             measured time of the layout predicted fastest, over that of the fastest one, minus 1
rank correlation   Spearman's, of predicted and measured times
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST_ROWS = 3  # for a rank correlation, where a group has them: of two rows it is 1 or -1


@dataclass(frozen=True)
class Group:
    """Rows that differ by layout only.

    Args:
        regret, mape: in percent.
        correlation: in [-1, 1]; None of two rows, where another group has LEAST_ROWS.
        closest: how far apart the two rows are that were measured closest to each other, in percent. A model whose
            error is no smaller cannot know their order.
    """

    name: str
    rows: int
    mape: float
    regret: float
    correlation: float | None
    closest: float


@dataclass(frozen=True)
class Errors:
    """Absolute percentage errors.

    Args:
        bias: mean of the signed errors, in percent.
    """

    rows: int
    mean: float
    median: float
    worst: float
    worst_row: str
    bias: float


def errors(predicted: Sequence[float], measured: Sequence[float], names: Sequence[str]) -> Errors | None:
    """None of no rows."""
    if not names:
        return None
    signed = 100 * (np.array(predicted) / np.array(measured) - 1)
    size = np.abs(signed)
    worst = int(size.argmax())
    return Errors(
        len(names), float(size.mean()), float(np.median(size)), float(size[worst]), names[worst], float(signed.mean())
    )


def groups(predicted: Sequence[float], measured: Sequence[float], keys: Sequence[str]) -> list[Group]:
    """Those of at least two rows, the worst correlation first."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        members[key].append(place)
    least = min(LEAST_ROWS, max(map(len, members.values()), default=0))
    found = [
        _group(key, np.array(predicted)[places], np.array(measured)[places], least)
        for key, places in members.items()
        if len(places) > 1
    ]
    return sorted(found, key=lambda group: 1.0 if group.correlation is None else group.correlation)


def _group(name: str, predicted: Array, measured: Array, least: int) -> Group:
    first = measured[predicted.argmin()]
    return Group(
        name=name,
        rows=len(measured),
        mape=float(100 * np.abs(predicted / measured - 1).mean()),
        regret=float(100 * (first / measured.min() - 1)),
        correlation=spearman(predicted, measured) if len(measured) >= least else None,
        closest=float(100 * np.expm1(np.diff(np.log(np.sort(measured))).min())),
    )


def spearman(one: Iterable[float], other: Iterable[float]) -> float:
    """Pearson's correlation of the ranks; equal values share their mean rank."""
    ranks = np.array([_ranks(np.array(list(each), dtype=float)) for each in (one, other)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=1).prod())
    return float((ranks[0] * ranks[1]).sum() / scale) if scale else 1.0


def _ranks(values: Array) -> Array:
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return np.asarray(below + (equal - 1) / 2)
