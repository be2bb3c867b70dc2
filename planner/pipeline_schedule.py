"""A pipeline's step, replayed event by event: one forward, one backward, also interleaved, with uneven stages.

Each stage computes its passes in the order of its schedule. A pass begins when the stage is free and what it needs has
arrived. Source of the orders: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fusionkit.errors import argument_error

# A long step repeats itself. So many rounds of micro-batches are replayed, and the rest follow from the last ones.
ROUNDS = 4


@dataclass(frozen=True)
class Pass:
    """A chunk's forward or backward pass of one micro-batch."""

    is_forward: bool
    micro_batch: int
    chunk: int


@dataclass(frozen=True)
class Durations:
    """Seconds of one stage.

    Args:
        forward, backward: of each of its chunks.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]

    @property
    def work(self) -> float:
        """Of one micro-batch."""
        return sum(self.forward) + sum(self.backward)


@dataclass(frozen=True)
class Span:
    """When a stage computed a pass, in seconds from the step's start."""

    stage: int
    work: Pass
    start: float
    end: float


@lru_cache(maxsize=4096)
def order(stage: int, stages: int, micro_batches: int, chunks: int) -> tuple[Pass, ...]:
    """What a stage computes, in order; a last group of fewer micro-batches than stages keeps its places."""
    whole = -(-micro_batches // stages) * stages if chunks > 1 else micro_batches
    turns = [
        (number, chunk)
        for first in range(0, whole, stages)
        for chunk in range(chunks)
        for number in range(first, min(first + stages, whole))
    ]
    forward = [Pass(True, number, chunk) for number, chunk in turns]
    backward = [Pass(False, number, chunks - 1 - chunk) for number, chunk in turns]
    ahead = stages - stage - 1 if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * stages
    ahead = min(ahead, len(forward))
    passes = forward[:ahead]
    for pair in zip(forward[ahead:], backward, strict=False):
        passes += pair
    passes += backward[len(forward) - ahead :]
    return tuple(one for one in passes if one.micro_batch < micro_batches)


def replay(stages: Sequence[Durations], micro_batches: int, send_seconds: float = 0.0) -> list[Span]:
    """Every pass of every stage.

    Args:
        send_seconds: from the end of a pass to its result's arrival at the next stage.
    """
    _check(stages, micro_batches)
    count, chunks = len(stages), len(stages[0].forward)
    plans = [order(stage, count, micro_batches, chunks) for stage in range(count)]
    places, free = [0] * count, [0.0] * count
    arrived = {(0, True, number, 0): 0.0 for number in range(micro_batches)}
    spans: list[Span] = []
    waiting = list(range(count))
    while waiting:
        stage = waiting.pop()
        while places[stage] < len(plans[stage]):
            one = plans[stage][places[stage]]
            ready = arrived.pop((stage, one.is_forward, one.micro_batch, one.chunk), None)
            if ready is None:
                break
            start = max(free[stage], ready)
            end = free[stage] = start + (stages[stage].forward if one.is_forward else stages[stage].backward)[one.chunk]
            places[stage] += 1
            spans.append(Span(stage, one, start, end))
            following = _follower(one, stage, count, chunks)
            if following is not None:
                to, message = following
                on_its_way = send_seconds if to != stage else 0.0
                arrived[to, message.is_forward, message.micro_batch, message.chunk] = end + on_its_way
                waiting.append(to)
    return spans


def seconds(stages: Sequence[Durations], micro_batches: int, send_seconds: float = 0.0) -> float:
    """A step's passes. Of a long one `ROUNDS` rounds are replayed; the rest takes what a round takes in the end."""
    _check(stages, micro_batches)
    if len(stages) == 1:
        return micro_batches * stages[0].work
    count, round_ = micro_batches, len(stages)
    skipped = max(0, count // round_ - ROUNDS - 1)
    count -= skipped * round_
    long = max(span.end for span in replay(stages, count, send_seconds))
    if not skipped:
        return long
    return long + skipped * (long - max(span.end for span in replay(stages, count - round_, send_seconds)))


def _follower(one: Pass, stage: int, stages: int, chunks: int) -> tuple[int, Pass] | None:
    """Who goes on from a result. None after the backward pass of the first chunk."""
    place = one.chunk * stages + stage
    if one.is_forward and place == stages * chunks - 1:
        return stage, Pass(False, one.micro_batch, one.chunk)
    place += 1 if one.is_forward else -1
    return None if place < 0 else (place % stages, Pass(one.is_forward, one.micro_batch, place // stages))


def _check(stages: Sequence[Durations], micro_batches: int) -> None:
    if micro_batches < 1:
        raise argument_error("pipeline_schedule", "micro_batches", "at least 1", micro_batches)
    chunks = {len(times) for stage in stages for times in (stage.forward, stage.backward)}
    if len(chunks) != 1:
        raise argument_error("pipeline_schedule", "stages", "at least one, each with as many chunks", sorted(chunks))
