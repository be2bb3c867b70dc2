"""Plans beside what was measured of them, and the one factor that corrects the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusionkit_planner.dominance import listed
from fusionkit_planner.layout import Layout
from fusionkit_planner.search import Plan, Question
from fusionkit_planner.training_memory import memory

FIRST = 1  # steps that do not count: allocations and first touches are in them


@dataclass(frozen=True)
class Measured:
    """One plan's run.

    Args:
        place: of the plan by prediction, from 1.
        steps: seconds of each; empty where nothing is timed.
        peaks: bytes of each rank, the process where devices are the host; empty if it failed.
        reason: why it failed; empty if it did not.
    """

    plan: Plan
    place: int
    steps: tuple[float, ...] = ()
    peaks: tuple[float, ...] = ()
    reason: str = ""

    @property
    def seconds(self) -> float | None:
        """The median step, without the first; None where nothing was timed."""
        counted = self.steps[FIRST:]
        return statistics.median(counted) if counted and not self.reason else None


@dataclass(frozen=True)
class Correction:
    """What all runs together say of the models.

    Args:
        time: measured over predicted seconds, the geometric mean; None where nothing was timed.
        memory: likewise of the fullest rank's peak, where devices account it; None on the host.
        beside: bytes that a process of the host has beside its tensors: the median; None on devices.
    """

    time: float | None = None
    memory: float | None = None
    beside: float | None = None

    def seconds(self, plan: Plan) -> float:
        return plan.time.seconds * (self.time or 1.0)

    def peak(self, predicted: float) -> float:
        """Bytes, of the predicted."""
        return predicted * (self.memory or 1.0) + (self.beside or 0.0)


def correction(question: Question, runs: Sequence[Measured], is_host: bool) -> Correction:
    """Fitted on the runs that did not fail."""
    ratios = [run.seconds / run.plan.time.seconds for run in runs if run.seconds]
    pairs = [(max(run.peaks), max(predicted_peaks(question, run.plan.layout))) for run in runs if run.peaks]
    time = _geometric_mean(ratios)
    if is_host:
        beside = statistics.median(found - predicted for found, predicted in pairs) if pairs else None
        return Correction(time, None, beside)
    return Correction(time, _geometric_mean([found / predicted for found, predicted in pairs]), None)


def _geometric_mean(values: Sequence[float]) -> float | None:
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


def predicted_peaks(question: Question, layout: Layout) -> list[float]:
    """Bytes of each rank that tensors take, in the order of ranks: without the margin for an allocator's gaps."""
    stages = [one.peak for one in memory(question.architecture, layout, question.sequence, question.rates.dtype)]
    inner = layout.tensor * layout.sharding  # data is outermost, then come pipeline, sharding and tensor
    return [stages[rank // inner % layout.pipeline] for rank in range(layout.devices)]


@dataclass(frozen=True)
class Verified:
    """All runs, and the plans in the order that they give.

    Args:
        order: (plan, its place by prediction) of those that were run or are listed: those that were timed, then those
            that were not, those that failed last.
        signal: that stopped the command before the last run; 0 where none did.
    """

    runs: tuple[Measured, ...]
    correction: Correction
    order: tuple[tuple[Plan, int], ...]
    signal: int = 0

    @property
    def best(self) -> Plan | None:
        """None where every run failed, or there was none."""
        return self.order[0][0] if any(not run.reason for run in self.runs) else None

    @property
    def marks(self) -> dict[int, tuple[float, float | None]]:
        """Place in the answer, from 0 -> (bytes of the fullest rank, seconds), of the runs that did not fail."""
        return {run.place - 1: (max(run.peaks), run.seconds) for run in self.runs if not run.reason}

    def of(self, plan: Plan) -> Measured | None:
        return next((run for run in self.runs if run.plan is plan), None)


def verified(
    question: Question, plans: Sequence[Plan], runs: Sequence[Measured], is_host: bool, signal: int = 0
) -> Verified:
    """Search by model, decide by measurement."""
    found = correction(question, runs, is_host)
    by_plan = {id(run.plan): run for run in runs}

    def key(placed: tuple[Plan, int]) -> tuple[int, float]:
        plan, place = placed
        run = by_plan.get(id(plan))
        if run is None:
            return 1, place
        return (2, place) if run.reason else (0, run.seconds or place)

    shown = {place + 1: plan for place, plan in listed(plans, len(plans))} | {run.place: run.plan for run in runs}
    order = sorted(((plan, place) for place, plan in shown.items()), key=key)
    return Verified(tuple(runs), found, tuple(order), signal)


def errors(runs: Sequence[Measured], found: Correction) -> Iterator[tuple[float, float]]:
    """(as predicted, corrected) of each run that was timed: relative errors of the step."""
    for run in runs:
        if run.seconds:
            yield run.plan.time.seconds / run.seconds - 1, found.seconds(run.plan) / run.seconds - 1


def same_order(runs: Sequence[Measured]) -> bool:
    """Whether the timed runs have the order of their predictions."""
    timed = sorted((run for run in runs if run.seconds), key=lambda run: run.seconds or 0.0)
    return [run.place for run in timed] == sorted(run.place for run in timed)
