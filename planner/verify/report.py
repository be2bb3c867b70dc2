"""Predicted beside measured, as text and as JSON. What is simulated, measured or corrected says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fusionkit_planner.report import columns
from fusionkit_planner.search import Plan, Question
from fusionkit_planner.train_report import BEST, layout_cells, named
from fusionkit_planner.verify.measured import Measured, Verified, errors, predicted_peaks, same_order
from fusionkit_planner.verify.place import Place

HEADER = ("", "predicted as", "tensor", "pipeline", "data", "sharding", "micro-batch", "recompute",
          "simulated s", "corrected s", "measured s", "simulated GB", "corrected GB", "measured GB")  # fmt: skip
LEGEND = """\
simulated: by the models. measured: the median step without the first, and the fullest rank. corrected: the simulated
figure after the correction below, for plans that were not run, too. GB: at the worst moment, without a margin."""
NONE = "-"


def text(question: Question, place: Place, found: Verified) -> str:
    shown = [pair for number, pair in enumerate(found.order) if number < BEST or found.of(pair[0])]
    lines = [_cells(question, found, number, *pair) for number, pair in enumerate(shown, 1)]
    parts = [
        "\n".join(_title(place, found)),
        columns([HEADER, *lines]),
        LEGEND,
        "\n".join([*_corrected(place, found), *_judged(found), *_promising(found), *_failed(found)]),
    ]
    return "\n\n".join(parts)


def _title(place: Place, found: Verified) -> Iterator[str]:
    if place.is_rehearsed:
        yield f"Rehearsed on {place}: memory was accounted. Nothing was computed, so no time is measured."
    else:
        yield f"Measured on {place}: {max((len(run.steps) for run in found.runs), default=0)} steps of each plan."
    if found.signal:
        yield f"Stopped after {len(found.runs)} runs."


def _cells(question: Question, found: Verified, number: int, plan: Plan, place: int) -> tuple[str, ...]:
    run = found.of(plan)
    predicted, correction = max(predicted_peaks(question, plan.layout)), found.correction
    seconds = run.seconds if run else None
    has_memory = correction.memory or correction.beside is not None
    return (
        str(number),
        str(place),
        *layout_cells(plan.layout),
        f"{plan.time.seconds:.3g}",
        f"{correction.seconds(plan):.3g}" if correction.time else NONE,
        "failed" if run and run.reason else f"{seconds:.3g}" if seconds else NONE,
        _gb(predicted),
        _gb(correction.peak(predicted)) if has_memory else NONE,
        _gb(max(run.peaks)) if run and run.peaks and not run.reason else NONE,
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.{1 if size >= 1e10 else 3}f}"


def _corrected(place: Place, found: Verified) -> Iterator[str]:
    correction, runs = found.correction, [run for run in found.runs if not run.reason]
    if correction.time:
        yield (
            f"Corrected times: simulated x {correction.time:.3f}. That is measured over simulated, the geometric mean "
            f"of {len(runs)} plans: one factor for all."
        )
    if correction.memory:
        yield f"Corrected memory: simulated x {correction.memory:.3f}, the geometric mean of {len(runs)} plans."
    if correction.beside is not None:
        yield (
            f"Corrected memory: simulated + {_gb(correction.beside)} GB, the median of {len(runs)} plans. A process "
            "of the host holds code, data and freed blocks beside its tensors."
        )


def _judged(found: Verified) -> Iterator[str]:
    both = list(errors(found.runs, found.correction))
    if not both:
        return
    simulated, corrected = (max(map(abs, column)) for column in zip(*both, strict=True))
    yield f"Largest error of a step's time: simulated {simulated:.1%}, corrected {corrected:.1%}."
    if len(both) > 1:
        timed = [str(place) for plan, place in found.order if (run := found.of(plan)) and run.seconds]
        same = (
            "is the simulated one" if same_order(found.runs) else f"is {', '.join(timed)}, by places in the simulation"
        )
        yield f"The measured order {same}."


def _promising(found: Verified) -> Iterator[str]:
    """Plans that were not run and may be faster than the best that was."""
    timed = [run.seconds for run in found.runs if run.seconds]
    left = [(plan, place) for plan, place in found.order if timed and found.of(plan) is None]
    faster = [place for plan, place in left if found.correction.seconds(plan) < min(timed)]
    if faster:
        which = ", ".join(map(str, faster[:BEST]))
        yield f"Not run, and faster than the best run by the corrected times: {len(faster)} plans, among them {which}."


def _failed(found: Verified) -> Iterator[str]:
    for run in found.runs:
        if run.reason:
            yield f"Failed: plan {run.place}, {named(run.plan.layout)}: {run.reason}"


def line(run: Measured) -> str:
    """One run, as soon as it has ended."""
    what = f"plan {run.place}, {named(run.plan.layout)}"
    if run.reason:
        return f"{what}: failed: {run.reason}"
    seconds = f"{run.seconds:.3g} s a step (simulated {run.plan.time.seconds:.3g}), " if run.seconds else ""
    return f"{what}: {seconds}{_gb(max(run.peaks))} GB"


def as_json(question: Question, place: Place, found: Verified) -> dict[str, Any]:
    """Seconds and bytes. `order` has places in `plans`, from 1: what was measured first, what failed last."""
    both = list(errors(found.runs, found.correction))
    return {
        "place": asdict(place),
        "is_complete": not found.signal,
        "runs": [_run(question, run, found) for run in found.runs],
        "correction": asdict(found.correction),
        "order": [place for _, place in found.order],
        "same_order": same_order(found.runs) if len(both) > 1 else None,
        "simulated_error_percent": _worst(both, 0),
        "corrected_error_percent": _worst(both, 1),
    }


def _worst(both: Sequence[tuple[float, float]], column: int) -> float | None:
    return 100 * max(abs(pair[column]) for pair in both) if both else None


def _run(question: Question, run: Measured, found: Verified) -> dict[str, Any]:
    return {
        "place": run.place,
        "layout": asdict(run.plan.layout),
        "failed": run.reason or None,
        "simulated_seconds": run.plan.time.seconds,
        "corrected_seconds": found.correction.seconds(run.plan) if found.correction.time else None,
        "measured_seconds": run.seconds,
        "steps": list(run.steps),
        "simulated_peaks": predicted_peaks(question, run.plan.layout),
        "measured_peaks": list(run.peaks),
    }
