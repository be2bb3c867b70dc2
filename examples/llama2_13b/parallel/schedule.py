"""In which order a stage of a pipeline computes the micro-batches of a step, and when each result goes to a neighbour.

A stage holds one or more chunks of layers. Chunk c of stage s is followed by chunk c of stage s + 1, and chunk c of the
last stage by chunk c + 1 of the first. All here is arithmetic: each stage computes the whole plan for itself.

Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2: one forward, one backward, also interleaved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from fusionkit.parallel.pipeline_order import Action, follower, one_forward_one_backward

# (stage, stages, micro_batches, chunks) -> the actions of the stage
Schedule = Callable[[int, int, int, int], list[Action]]


@dataclass(frozen=True)
class Tick:
    """One action of a stage, or none, and what then moves at the same time on all stages.

    Args:
        action: what the stage computes; None while it waits.
        receives: the actions that arriving tensors are for.
        sends: the stage that the result goes to; None if it stays.
    """

    action: Action | None
    receives: tuple[Action, ...]
    sends: int | None


def forward_only(stage: int, stages: int, micro_batches: int, chunks: int) -> list[Action]:
    """For evaluation."""
    return [action for action in one_forward_one_backward(stage, stages, micro_batches, chunks) if action.is_forward]


@lru_cache
def timeline(schedule: Schedule, stage: int, stages: int, micro_batches: int, chunks: int) -> tuple[Tick, ...]:
    """A stage's actions in time, as if each took one tick, with the messages between them.

    All stages find the same messages in the same order. So each can post what it sends and receives at the end of a
    tick in one go, and none waits for another in a circle, also where a send ends with its receipt only.
    """
    plans = [deque(schedule(each, stages, micro_batches, chunks)) for each in range(stages)]
    ready = {(0, Action(True, number, 0)) for number in range(micro_batches)}
    ticks: list[Tick] = []
    while any(plans):
        now = {each: plan.popleft() for each, plan in enumerate(plans) if plan and (each, plan[0]) in ready}
        if not now:
            raise RuntimeError(f"schedule: a stage must be able to go on, got {[plan and plan[0] for plan in plans]}")
        following = {each: follower(action, each, stages, chunks) for each, action in now.items()}
        messages = {each: message for each, message in following.items() if message}
        ready |= set(messages.values())
        receives = tuple(action for each, (to, action) in messages.items() if to == stage != each)
        to, _ = messages.get(stage, (stage, None))
        if stage in now or receives:
            ticks.append(Tick(now.get(stage), receives, None if to == stage else to))
    return tuple(ticks)
