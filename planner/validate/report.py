"""What a validation found, as text and as JSON. Every predicted figure is simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from fusionkit_planner.validate import fitted_memory, fitted_time, judging, least_squares
from fusionkit_planner.validate.distinct import Distinct, distinct
from fusionkit_planner.validate.fitted_memory import Figure
from fusionkit_planner.validate.fitted_time import Fitted
from fusionkit_planner.validate.judging import Errors, Group
from fusionkit_planner.validate.machine import NODE, parameters
from fusionkit_planner.validate.rows import Row

from fusionkit.errors import argument_error

WORST = 5  # groups and outliers that are listed


@dataclass(frozen=True)
class Validation:
    """Of all judged rows.

    Args:
        fitted: by the device's name.
        fitted_rows: on which each was fitted.
        timed: judged rows with a measured time, and what was predicted, in seconds.
        figures: of memory.
        rows: which rows count, and how many do not.
    """

    fitted: dict[str, Fitted]
    fitted_rows: dict[str, list[Row]]
    timed: list[tuple[Row, float]]
    figures: list[Figure]
    rows: Distinct

    @property
    def time(self) -> Errors | None:
        rows = [row for row, _ in self.timed]
        return judging.errors([t for _, t in self.timed], [r.seconds or 0.0 for r in rows], [r.name for r in rows])

    @property
    def groups(self) -> list[Group]:
        rows = [row for row, _ in self.timed]
        return judging.groups([t for _, t in self.timed], [r.seconds or 0.0 for r in rows], [r.group for r in rows])

    def memory(self, kind: str | None = None) -> Errors | None:
        """Of one kind of figure, or of all."""
        chosen = [one for one in self.figures if kind in (None, one.kind)]
        predicted, measured = [one.predicted for one in chosen], [one.measured for one in chosen]
        return judging.errors(predicted, measured, [one.row.name for one in chosen])

    @property
    def kinds(self) -> list[str]:
        return sorted({one.kind for one in self.figures})


def validate(fit: Sequence[Row], judge: Sequence[Row]) -> Validation:
    """Fit each device on its rows, and predict what is judged, each row once.

    Raises:
        ValueError: a judged row's device has no row to fit on.
    """
    fitted, fitted_rows, timed, figures = {}, {}, [], []
    counted = distinct(fit, judge)
    for name in dict.fromkeys(row.device.name for row in counted.judge):
        own, judged = ([row for row in rows if row.device.name == name] for rows in (counted.fit, counted.judge))
        rows = fitted_rows[name] = [row for row in own if row.seconds]
        if not rows:
            advice = "Measure some steps there, and give their file to --fit"
            rule, context = f"a file with steps on {name}, which --judge has", "that device is unknown otherwise"
            raise argument_error("plan validate", "--fit", rule, "none", context, advice)
        fitted[name] = fitted_time.fit(rows)
        with_time = [row for row in judged if row.seconds]
        timed += list(zip(with_time, fitted[name].seconds(with_time).tolist(), strict=True))
        figures += fitted_memory.figures(judged, fitted_memory.fit(own))
    return Validation(fitted, fitted_rows, timed, figures, counted)


def as_json(found: Validation) -> dict[str, Any]:
    """Percentages and correlations of the worst group; null where no row says."""
    time, memory, groups = found.time, found.memory(), found.groups
    correlations = [group.correlation for group in groups if group.correlation is not None]
    return {
        "label": "simulated",
        "time_mape_percent": time.mean if time else None,
        "memory_mape_percent": memory.mean if memory else None,
        "regret_percent": max((group.regret for group in groups), default=None),
        "rank_correlation": min(correlations, default=None),
        "fitted_rows": {name: len(rows) for name, rows in found.fitted_rows.items()},
        "judged_rows_that_were_fitted": found.rows.known,
        "repeated_rows": found.rows.repeated,
        "warnings": list(warnings(found)),
        "time": asdict(time) if time else None,
        "memory": {kind: asdict(errors) for kind in found.kinds if (errors := found.memory(kind))},
        "groups": [asdict(group) for group in groups],
        "fitted": {name: fitted.values for name, fitted in found.fitted.items()},
        "rows": [
            {"row": row.name, "predicted_ms": 1e3 * time, "measured_ms": 1e3 * (row.seconds or 0.0)}
            for row, time in found.timed
        ],
    }


def text(found: Validation) -> Iterator[str]:
    """Lines."""
    yield "simulated: times and memory below are predicted by the planner, and compared with measured rows"
    yield from warnings(found)
    for name, rows in found.fitted_rows.items():
        yield ""
        yield from _fitted(name, found.fitted[name], rows)
    yield ""
    yield "| judged | rows | mean error | median | worst | bias | worst row |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for what, errors in [("time", found.time), *((f"memory: {kind}", found.memory(kind)) for kind in found.kinds)]:
        if errors:
            yield (
                f"| {what} | {errors.rows} | {errors.mean:.2f}% | {errors.median:.2f}% | {errors.worst:.1f}% "
                f"| {errors.bias:+.2f}% | {errors.worst_row} |"
            )
    yield ""
    yield from _groups(found.groups)


def warnings(found: Validation) -> Iterator[str]:
    """What makes the figures say less than they seem to."""
    counted = found.rows
    if counted.repeated:
        yield f"warning: {counted.repeated} rows stand in the files of --fit or of --judge again, and count once"
    if counted.known and counted.judges_the_fit:
        yield (
            f"warning: all {counted.known} judged rows are among those that the model was fitted on, so the errors are "
            "of a fit, and predict nothing. Give other rows to --judge"
        )
    elif counted.known:
        yield (
            f"warning: {counted.known} of the judged rows are among those that the model was fitted on, and are left "
            f"out: the errors are of the other {len(counted.judge)}"
        )
    for name, rows in found.fitted_rows.items():
        if len(rows) < (needed := len(parameters(rows[0].device))):
            yield (
                f"warning: {name} is fitted on {len(rows)} rows and has {needed} rates, so at least {needed} rows of "
                "different layouts are needed. What fewer rows leave open stays near the data sheet"
            )


def _fitted(name: str, fitted: Fitted, rows: Sequence[Row]) -> Iterator[str]:
    device, measured = rows[0].device, np.array([row.seconds for row in rows])
    limits = least_squares.OUTLIER * np.array([fitted.noise[row.layout.devices > NODE] for row in rows])
    missed = np.abs(np.log(fitted.seconds(rows) / measured)) / limits
    yield f"{name}, fitted on {len(rows)} rows; the fit begins at: {device.source}"
    for one in parameters(device):
        yield f"  {one.name} {fitted.values[one.name]:.4g} (began at {one.begins:.4g}): {one.meaning}"
    yield f"  and {sum(map(len, fitted.factors))} factors near 1, of kinds of parts"
    outliers = [rows[place].name for place in np.argsort(-missed) if missed[place] > 1]
    shown = f": {', '.join(outliers[:WORST])}" if outliers else ""
    limit = " or ".join(f"{100 * each:.1f}%" for each in sorted(set(limits.tolist())))
    yield f"  {len(outliers)} rows are missed by more than {limit}, and pull no harder than at that{shown}"


def _groups(groups: Sequence[Group]) -> Iterator[str]:
    if not groups:
        yield "no two rows differ by layout only, so there is neither regret nor rank correlation"
        return
    ranked = [group for group in groups if group.correlation is not None]
    correlations = [group.correlation for group in ranked if group.correlation is not None]
    yield f"{len(groups)} groups of rows that differ by layout only: worst regret {max(g.regret for g in groups):.2f}%"
    least = min(group.rows for group in ranked)
    yield (
        f"{len(ranked)} of them with at least {least} rows: worst rank correlation "
        f"{min(correlations):.3f}, mean {np.mean(correlations):.3f}"
    )
    yield ""
    yield "| group | rows | mean error | regret | rank correlation | closest rows differ by |"
    yield "| --- | --- | --- | --- | --- | --- |"
    worst = sorted(groups, key=lambda group: -group.regret)
    for group in dict.fromkeys([*worst[:WORST], *groups[:WORST]]):
        correlation = "" if group.correlation is None else f"{group.correlation:.3f}"
        yield (
            f"| {group.name} | {group.rows} | {group.mape:.2f}% | {group.regret:.2f}% | {correlation} "
            f"| {group.closest:.2f}% |"
        )
