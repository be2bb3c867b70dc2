"""Cross validation: the judged rows are divided at random, time and again, and each half is predicted from the other.

One split says little of rank correlation and regret, for single rows decide them. Seeds 0, 1, ... make the splits, so a
command gives the same figures whenever it is run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from fusionkit_planner.validate import report
from fusionkit_planner.validate.distinct import distinct
from fusionkit_planner.validate.rows import Row

from fusionkit.errors import argument_error

# name in JSON -> (heading, whether small is good)
FIGURES = {
    "time_mape_percent": ("time error", True),
    "memory_mape_percent": ("memory error", True),
    "regret_percent": ("regret", True),
    "rank_correlation": ("rank correlation", False),
}
Figures = dict[str, float | None]


def halves(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """(fitted, judged), at random; the judged half has the odd row."""
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]


def validate(fit: Sequence[Row], judge: Sequence[Row], splits: int) -> list[Figures]:
    """The figures of each split. Half of the judged rows join those that are fitted in any case.

    Raises:
        ValueError: there is nothing to divide.
    """
    counted = distinct(fit, judge)
    if len(counted.judge) < 2 or counted.judges_the_fit:
        rule, advice = "at least two rows that --fit does not have", "Give more rows to --judge"
        raise argument_error("plan validate", "--judge", rule, len(counted.judge) - counted.known, advice=advice)
    found = []
    for seed in range(splits):
        fitted, judged = halves(counted.judge, seed)
        figures = report.as_json(report.validate([*counted.fit, *fitted], judged))
        found.append({name: figures[name] for name in FIGURES})
    return found


def as_json(found: Sequence[Figures]) -> dict[str, Any]:
    """Of each split, their mean, and the worst of each figure; null where no row says."""
    return {"label": "simulated", "splits": list(found), "mean": _over(found, np.mean), "worst": _worst(found)}


def text(found: Sequence[Figures]) -> Iterator[str]:
    """Lines."""
    yield "simulated: each half is predicted from the other, and from all rows of --fit"
    yield ""
    names = [name for name in FIGURES if any(one[name] is not None for one in found)]
    yield "| split | " + " | ".join(FIGURES[name][0] for name in names) + " |"
    yield "| --- " * (len(names) + 1) + "|"
    rows = [(str(seed), one) for seed, one in enumerate(found)]
    for title, one in [*rows, ("mean", _over(found, np.mean)), ("worst", _worst(found))]:
        yield f"| {title} | " + " | ".join(_shown(name, one[name]) for name in names) + " |"


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}%" if name.endswith("percent") else f"{value:.3f}"


def _worst(found: Sequence[Figures]) -> Figures:
    return {name: _over(found, np.max if is_small else np.min)[name] for name, (_, is_small) in FIGURES.items()}


def _over(found: Sequence[Figures], reduce: Any) -> Figures:
    """Of the splits that have a figure."""
    known = {name: [value for one in found if (value := one[name]) is not None] for name in FIGURES}
    return {name: float(reduce(values)) if values else None for name, values in known.items()}
