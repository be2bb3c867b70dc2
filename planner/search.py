"""The search: every layout is checked for memory, and what fits is priced.

Nothing is left out and nothing is tried: a model of memory and a model of time stand for each run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fusionkit_planner import candidates, refusals, training_memory
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.candidates import Degrees
from fusionkit_planner.layout import Layout
from fusionkit_planner.rates import Rates
from fusionkit_planner.refusals import Refusal
from fusionkit_planner.training_memory import StageMemory, memory
from fusionkit_planner.training_time import StepTime, step

Candidate = tuple[Degrees, Layout]
Progress = Callable[[Sequence[Candidate]], Iterable[Candidate]]


@dataclass(frozen=True)
class Question:
    """What is to be trained, and on what.

    Args:
        global_batch: rows of a step, over all copies.
        sequence: tokens of a row.
        memory_bytes: of one device.
    """

    architecture: Architecture
    rates: Rates
    devices: int
    global_batch: int
    sequence: int
    memory_bytes: float


@dataclass(frozen=True)
class Plan:
    """A layout that fits, simulated.

    Args:
        needs_bytes: of the device that needs most.
    """

    layout: Layout
    needs_bytes: float
    time: StepTime

    @property
    def rank(self) -> tuple[float, ...]:
        """The fastest first; of equally fast ones that which needs less memory, then that with fewer divisions."""
        one = self.layout
        return (
            self.time.seconds,
            self.needs_bytes,
            one.tensor,
            one.pipeline,
            one.virtual_stages,
            one.sharding,
            one.stage,
        )


@dataclass(frozen=True)
class Answer:
    """All plans, the best first, and all that is refused."""

    question: Question
    plans: tuple[Plan, ...]
    refused: tuple[Refusal, ...]


def search(question: Question, progress: Progress = iter) -> Answer:
    """Of every layout.

    Args:
        progress: passes the candidates on, and shows how far it is.
    """
    asked, refused = question, _refused_degrees(question)
    plans = []
    for found, layout in progress(_candidates(question)):
        needs = needed_bytes(question, layout)
        if needs > question.memory_bytes:
            refused.append(refusals.of_memory(found, layout, needs))
        else:
            plans.append(Plan(layout, needs, step(asked.architecture, layout, asked.sequence, asked.rates)))
    return Answer(question, tuple(sorted(plans, key=lambda plan: plan.rank)), tuple(refused))


def needed_bytes(question: Question, layout: Layout) -> float:
    """`total` of `peak`."""
    asked = question
    given = (asked.architecture, layout, asked.sequence, asked.rates.dtype)
    return max(training_memory.needed_bytes(*given, stage) for stage in fullest(layout))


def peak(question: Question, layout: Layout) -> StageMemory:
    """Of the pipeline stage that needs most."""
    model, ends = question.architecture, fullest(layout)
    stages = memory(model, layout, question.sequence, question.rates.dtype, stages=ends)
    return max(stages, key=lambda stage: stage.total)


def fullest(layout: Layout) -> list[int]:
    """The pipeline stages one of which needs most: the first and the last.

    A stage between them keeps no more micro-batches than the first, has no more layers, and no end of the model. Stage
    3 of sharding gives most of the embedding to other copies: then the second stage stands for those between.
    """
    found = {0, layout.pipeline - 1}
    if layout.stage == 3:
        found.add(min(1, layout.pipeline - 1))
    return sorted(found)


def _refused_degrees(question: Question) -> list[Refusal]:
    return [refusal for _, refusal in _judged(question) if refusal is not None]


def _candidates(question: Question) -> list[Candidate]:
    possible = (found for found, refusal in _judged(question) if refusal is None)
    return [
        (found, layout)
        for found in possible
        for layout in candidates.layouts(found, question.architecture, question.global_batch)
    ]


def _judged(question: Question) -> Iterator[tuple[Degrees, Refusal | None]]:
    for found in candidates.degrees(question.devices):
        yield found, refusals.of_degrees(found, question.architecture, question.global_batch)
