"""From the group that a caller names to the communicator of its ranks."""

from __future__ import annotations

from typing import Any

from fusionkit.errors import argument_error
from fusionkit.parallel.communicator import Communicator, unique_id
from fusionkit.spec import GroupSpec

# Of Paddle groups, by id: Paddle numbers its groups alike on all ranks and never twice.
_communicators: dict[int, Communicator] = {}


def communicator_of(group: Any, *, timeout: float = 300.0) -> Communicator:
    """The communicator itself, or the one of a Paddle group, made at the first call, which all its ranks make.

    Args:
        group: a Paddle group or a `Communicator`.
        timeout: of a communicator that this call makes, as for `Communicator`.

    Raises:
        TypeError: group is a `GroupSpec`, or no group.
        CommunicatorError: a rank of the group does not join.
    """
    if isinstance(group, Communicator):
        return group
    if isinstance(group, GroupSpec) or not hasattr(group, "ranks"):
        rule = "a Paddle group or a Communicator"
        advice = "A GroupSpec is for explain and reference"
        raise argument_error("collective", "group", rule, f"{group!r:.60}", advice=advice, kind=TypeError)
    if group.id not in _communicators:
        _communicators[group.id] = _joined(group, timeout)
    return _communicators[group.id]


def known_communicator(group: Any) -> Communicator | None:
    """What `communicator_of` would give if that needs no other rank."""
    return group if isinstance(group, Communicator) else _communicators.get(getattr(group, "id", None))  # type: ignore[arg-type]


def _joined(group: Any, timeout: float) -> Communicator:
    if group.nranks == 1:
        return Communicator(unique_id(), 0, 1)
    import paddle

    store = paddle.base.core.create_or_get_global_tcp_store()
    name = f"fusionkit/group {group.id}"
    made: Communicator = Communicator.from_store(store, group.rank, group.nranks, name=name, timeout=timeout)
    return made
