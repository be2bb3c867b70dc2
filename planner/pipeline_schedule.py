"""A pipeline's step, replayed event by event: one forward, one backward, also interleaved, with uneven stages.

Each stage computes its passes in the order of its schedule. A pass begins when the stage is free and what it needs has
arrived. Source of the orders: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fusionkit.errors import argument_error
from fusionkit.parallel.pipeline_order import Action, follower, one_forward_one_backward

# A long step repeats itself. So many rounds of micro-batches are replayed, and the rest follow from the last ones.
ROUNDS = 3


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
    work: Action
    start: float
    end: float


@lru_cache(maxsize=4096)
def order(stage: int, stages: int, micro_batches: int, chunks: int) -> tuple[Action, ...]:
    """What a stage computes, kept: a search asks for few orders, many times."""
    return tuple(one_forward_one_backward(stage, stages, micro_batches, chunks))


@dataclass(frozen=True)
class Event:
    """A pass in an order in which all that it waits for comes before it.

    Args:
        before: the place of the stage's pass before it; -1 if there is none.
        needs: the place of the pass whose result it takes; -1 if there is none.
        is_sent: that result comes from another stage.
    """

    stage: int
    work: Action
    before: int
    needs: int
    is_sent: bool


@lru_cache(maxsize=256)
def events(stages: int, micro_batches: int, chunks: int) -> tuple[Event, ...]:
    """Of a step, on all stages. They do not depend on how long passes take."""
    plans = [order(stage, stages, micro_batches, chunks) for stage in range(stages)]
    places, before = [0] * stages, [-1] * stages
    arrived = {(0, True, number, 0): (-1, False) for number in range(micro_batches)}
    found: list[Event] = []
    waiting = list(range(stages))
    while waiting:
        stage = waiting.pop()
        while places[stage] < len(plans[stage]):
            one = plans[stage][places[stage]]
            came = arrived.pop((stage, one.is_forward, one.micro_batch, one.chunk), None)
            if came is None:
                break
            found.append(Event(stage, one, before[stage], *came))
            before[stage] = len(found) - 1
            places[stage] += 1
            following = follower(one, stage, stages, chunks)
            if following is not None:
                to, message = following
                key = (to, message.is_forward, message.micro_batch, message.chunk)
                arrived[key] = (len(found) - 1, to != stage)
                waiting.append(to)
    return tuple(found)


@lru_cache(maxsize=256)
def _columns(stages: int, micro_batches: int, chunks: int) -> tuple[tuple[int, int, int, bool], ...]:
    """(place of the duration, before, needs, is_sent) of each event: what a replay reads."""
    return tuple(
        (
            (each.stage * chunks + each.work.chunk) * 2 + (not each.work.is_forward),
            each.before,
            each.needs,
            each.is_sent,
        )
        for each in events(stages, micro_batches, chunks)
    )


def _ends(stages: Sequence[Durations], micro_batches: int, send_seconds: float) -> list[float]:
    """When each event ends."""
    chunks = len(stages[0].forward)
    takes = [time for each in stages for both in zip(each.forward, each.backward, strict=True) for time in both]
    ends: list[float] = []
    for place, before, needs, is_sent in _columns(len(stages), micro_batches, chunks):
        start = ends[before] if before >= 0 else 0.0
        if needs >= 0:
            ready = ends[needs] + send_seconds if is_sent else ends[needs]
            start = ready if ready > start else start
        ends.append(start + takes[place])
    return ends


def replay(stages: Sequence[Durations], micro_batches: int, send_seconds: float = 0.0) -> list[Span]:
    """Every pass of every stage.

    Args:
        send_seconds: from the end of a pass to its result's arrival at the next stage.
    """
    _check(stages, micro_batches)
    ends = _ends(stages, micro_batches, send_seconds)
    spans = []
    for each, end in zip(events(len(stages), micro_batches, len(stages[0].forward)), ends, strict=True):
        times = stages[each.stage].forward if each.work.is_forward else stages[each.stage].backward
        spans.append(Span(each.stage, each.work, end - times[each.work.chunk], end))
    return spans


def seconds(stages: Sequence[Durations], micro_batches: int, send_seconds: float = 0.0) -> float:
    """A step's passes. Of a long one `ROUNDS` rounds are replayed; the rest takes what a round takes in the end."""
    _check(stages, micro_batches)
    if len(stages) == 1:
        return micro_batches * stages[0].work
    count, skipped = _replayed(len(stages), micro_batches)
    long = max(_ends(stages, count, send_seconds))
    if not skipped:
        return long
    return long + skipped * (long - max(_ends(stages, count - len(stages), send_seconds)))


def _replayed(stages: int, micro_batches: int) -> tuple[int, int]:
    """(micro-batches that are replayed, rounds of `stages` micro-batches that are not)."""
    skipped = max(0, micro_batches // stages - ROUNDS - 1)
    return micro_batches - skipped * stages, skipped


@dataclass(frozen=True)
class Path:
    """What the longest chain of a step's passes is made of.

    Args:
        passes: (stage, chunk, is_forward) -> how many of them.
        sends: messages between stages.
    """

    passes: dict[tuple[int, int, bool], int]
    sends: int


def longest_path(stages: Sequence[Durations], micro_batches: int, send_seconds: float = 0.0) -> Path:
    """Its durations add up to `seconds`. While it stays the longest, they tell how a step's time answers to each."""
    _check(stages, micro_batches)
    count, skipped = _replayed(len(stages), micro_batches)
    long = _replayed_path(stages, count, send_seconds)
    if not skipped:
        return long
    short = _replayed_path(stages, count - len(stages), send_seconds)
    passes = {
        key: long.passes.get(key, 0) + skipped * (long.passes.get(key, 0) - short.passes.get(key, 0))
        for key in long.passes.keys() | short.passes.keys()
    }
    return Path(passes, long.sends + skipped * (long.sends - short.sends))


def _replayed_path(stages: Sequence[Durations], micro_batches: int, send_seconds: float = 0.0) -> Path:
    """Back from the last event, to whatever each has waited for."""
    ends = _ends(stages, micro_batches, send_seconds)
    found = events(len(stages), micro_batches, len(stages[0].forward))
    place, passes, sends = max(range(len(ends)), key=ends.__getitem__), Counter[tuple[int, int, bool]](), 0
    while place >= 0:
        each = found[place]
        passes[each.stage, each.work.chunk, each.work.is_forward] += 1
        ready = ends[each.needs] + (send_seconds if each.is_sent else 0.0) if each.needs >= 0 else -1.0
        if ready >= (ends[each.before] if each.before >= 0 else 0.0):
            place, sends = each.needs, sends + each.is_sent
        else:
            place = each.before
    return Path(dict(passes), sends)


def _check(stages: Sequence[Durations], micro_batches: int) -> None:
    if micro_batches < 1:
        raise argument_error("pipeline_schedule", "micro_batches", "at least 1", micro_batches)
    chunks = {len(times) for stage in stages for times in (stage.forward, stage.backward)}
    if len(chunks) != 1:
        raise argument_error("pipeline_schedule", "stages", "at least one, each with as many chunks", sorted(chunks))
