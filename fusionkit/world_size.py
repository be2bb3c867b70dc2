"""How many ranks a group has, whoever made the group."""

from __future__ import annotations

from typing import Any

from fusionkit.call import Call
from fusionkit.errors import argument_error


def world_size_of(group: Any) -> int:
    """Its number of ranks, 0 of what is no group. Paddle's groups of one rank say -1 by world_size, as if outside."""
    size = getattr(group, "nranks", getattr(group, "world_size", 0))
    return size if isinstance(size, int) else 0


def bind_world_size(call: Call) -> int:
    """The group's size, as the axis "world_size" of the call.

    Raises:
        TypeError: group is nothing that has ranks.
    """
    group = call.values["group"]
    world_size = world_size_of(group)
    if world_size < 1:
        rule = "a Paddle group that this rank is in, a Communicator, or for explain and reference a GroupSpec"
        raise argument_error(call.spec.name, "group", rule, f"{group!r:.60}", kind=TypeError)
    call.dims["world_size"] = world_size
    return world_size
