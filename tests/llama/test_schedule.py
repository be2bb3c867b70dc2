"""The order of a pipeline's work and messages, run by simulators that know nothing of how it was made."""

from __future__ import annotations

import random
from collections import defaultdict, deque

import pytest

from examples.llama2_13b.parallel.schedule import forward_only, timeline
from fusionkit.parallel.pipeline_order import Action, one_forward_one_backward

# stages, micro-batches, chunks
LAYOUTS = [
    *((stages, count, 1) for stages in (1, 2, 3, 4, 8) for count in (0, 1, 3, 8, 20)),
    *((stages, count, chunks) for stages in (2, 3, 4) for chunks in (2, 3) for count in (1, 5, 8)),
]
SCHEDULES = [one_forward_one_backward, forward_only]


def needed(action, stage, stages, chunks):
    """(stage, action) whose result an action needs; None for the first of all."""
    if action.is_forward and (stage, action.chunk) == (0, 0):
        return None
    if action.is_forward:
        return ((stage - 1) % stages, Action(True, action.micro_batch, action.chunk - (stage == 0)))
    if (stage, action.chunk) == (stages - 1, chunks - 1):
        return stage, Action(True, action.micro_batch, action.chunk)
    return ((stage + 1) % stages, Action(False, action.micro_batch, action.chunk + (stage == stages - 1)))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("stages", "count", "chunks"), LAYOUTS)
def test_every_action_comes_once_and_finds_what_it_needs(schedule, stages, count, chunks):
    plans = [schedule(stage, stages, count, chunks) for stage in range(stages)]
    directions = (True, False) if schedule is one_forward_one_backward else (True,)
    everything = {
        Action(way, number, chunk) for way in directions for number in range(count) for chunk in range(chunks)
    }
    assert all(len(plan) == len(everything) and set(plan) == everything for plan in plans)
    done, waiting = set(), [deque(plan) for plan in plans]
    while any(waiting):
        able = [
            stage
            for stage, plan in enumerate(waiting)
            if plan and needed(plan[0], stage, stages, chunks) in {None, *done}
        ]
        assert able, f"every stage waits for another: {[plan and plan[0] for plan in waiting]}"
        for stage in able:
            action = waiting[stage].popleft()
            assert action.is_forward or (stage, Action(True, action.micro_batch, action.chunk)) in done
            done.add((stage, action))


def most_held(plan):
    held = [0]
    for action in plan:
        held.append(held[-1] + (1 if action.is_forward else -1))
    return max(held)


@pytest.mark.parametrize(("stages", "count", "chunks"), LAYOUTS)
def test_few_micro_batches_are_held(stages, count, chunks):
    """Interleaved, a chunk's activations are a part of a stage's: Narayanan et al. 2021, section 2.2."""
    for stage in range(stages):
        plan = one_forward_one_backward(stage, stages, count, chunks)
        ahead = stages - stage if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * stages + 1
        assert most_held(plan) <= min(ahead, count * chunks)
        assert chunks > 1 or most_held(plan) == min(ahead, count)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("stages", "count", "chunks"), LAYOUTS)
def test_messages_arrive_in_time_where_a_send_waits_for_its_receipt(schedule, stages, count, chunks):
    """Stages run in any order. None goes on before what it sends has been received: the strictest of all links."""
    chance = random.Random(f"{stages} {count} {chunks}")
    ticks = [deque(timeline(schedule, stage, stages, count, chunks)) for stage in range(stages)]
    actions = [[tick.action for tick in each if tick.action] for each in ticks]
    assert actions == [schedule(stage, stages, count, chunks) for stage in range(stages)]
    has, sending, receiving = defaultdict(set), {}, {}  # by stage; the latter two until they are done

    def compute(stage):
        tick = ticks[stage].popleft()
        if tick.action:
            source = needed(tick.action, stage, stages, chunks)
            assert source is None or source in has[stage], (stage, tick)
            has[stage].add((stage, tick.action))
        if tick.sends is not None:
            sending[stage] = tick.sends, tick.action
        if tick.receives:
            receiving[stage] = {needed(action, stage, stages, chunks) for action in tick.receives}

    def move():
        for stage, sources in receiving.items():
            for source, action in sources:
                if sending.get(source) == (stage, action):
                    del sending[source]
                    has[stage].add((source, action))
                    receiving[stage] = sources - {(source, action)}
                    if not receiving[stage]:
                        del receiving[stage]
                    return
        raise AssertionError(f"sends {sending} and receives {receiving} wait for each other")

    while any(ticks) or sending or receiving:
        free = [stage for stage, left in enumerate(ticks) if left and stage not in {*sending, *receiving}]
        compute(chance.choice(free)) if free else move()


def test_interleaving_shortens_the_wait():
    """Of 4 stages and 8 micro-batches: (stages - 1) forward and backward passes of a whole stage, or of half of one."""

    def span(chunks):
        """In passes of a layer each: a stage has two."""
        ends = defaultdict(int)
        plans = [deque(one_forward_one_backward(stage, 4, 8, chunks)) for stage in range(4)]
        clocks = [0] * 4
        while any(plans):
            for stage, plan in enumerate(plans):
                source = plan and needed(plan[0], stage, 4, chunks)
                if plan and (source is None or source in ends):
                    clocks[stage] = max(clocks[stage], ends[source] if source else 0) + 2 // chunks
                    ends[stage, plan.popleft()] = clocks[stage]
        return max(clocks)

    assert (span(1), span(2)) == (2 * (8 + 3) * 2, 2 * 8 * 2 + 3 * 2)
