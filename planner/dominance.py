"""Plans that another one replaces, so that a short list has no two of the same kind where one is better in all.

Plans are of one kind if their ranks of tensor, their pipeline stages and their micro-batch are the same. Those decide
how large products are and who talks to whom, so a model of time may err differently for each kind. Plans of one kind
differ in sharding, virtual stages and recomputation: means to less memory or less waiting, which give nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fusionkit_planner.layout import Layout
from fusionkit_planner.search import Plan

SAVED = 0.01  # of a device's memory: a slower plan is listed if it needs so much less. The margin is 8%


def kind(layout: Layout) -> Hashable:
    return layout.tensor, layout.pipeline, layout.micro_batch


def dominators(plans: Sequence[Plan]) -> list[int | None]:
    """Of each plan the place of a listed one of its kind that is no slower, if it needs no less memory than that;
    less than SAVED is none. None if there is none.

    Args:
        plans: the fastest first, and of equally fast ones that which needs least memory.
    """
    leanest: dict[Hashable, int] = {}
    found: list[int | None] = []
    for place, plan in enumerate(plans):
        best = leanest.get(kind(plan.layout))
        replaced = best is not None and plan.needs_bytes > (1 - SAVED) * plans[best].needs_bytes
        found.append(best if replaced else None)
        if not replaced:
            leanest[kind(plan.layout)] = place
    return found


def listed(plans: Sequence[Plan], count: int) -> list[tuple[int, Plan]]:
    """(place among all, plan) of the fastest that none of their kind replaces."""
    free = [place for place, better in enumerate(dominators(plans)) if better is None]
    return [(place, plans[place]) for place in free[:count]]
