"""The plain collectives on Paddle tensors, with their gradients.

Host tensors go through the communicator: Paddle's gloo has no reduce-scatter, no 16-bit sums and nothing asynchronous.
Device tensors go through `paddle.distributed`.
"""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.adapters.gradients import linear_map
from fusionkit.errors import argument_error
from fusionkit.frameworks.paddle import device_name, host_view
from fusionkit.parallel.communicator import Communicator
from fusionkit.parallel.groups import communicator_of
from fusionkit.world_size import world_size_of


def all_gather(x: Any, group: Any) -> Any:
    """[rows, ...] -> [rows * world_size, ...]: all ranks' x in the order of ranks. Its gradient is reduce_scatter."""
    return linear_map(x, gathered, reduce_scattered, group)


def reduce_scatter(x: Any, group: Any) -> Any:
    """[rows, ...] -> [rows / world_size, ...]: this rank's rows of the sum over ranks. Its gradient is all_gather."""
    return linear_map(x, reduce_scattered, gathered, group)


def all_reduce(x: Any, group: Any) -> Any:
    """The sum over ranks. Its gradient is the identity: what follows is computed alike on all ranks."""
    return linear_map(x, all_reduced, lambda dy, group: dy, group)


def identity(x: Any, group: Any) -> Any:
    """x. Its gradient is the sum over ranks: each rank goes on to compute something else from x."""
    # A tensor of its own: `reshape` to its shape is x itself, and Paddle takes that for a change in place.
    return linear_map(x, lambda x, _: x.unsqueeze(0).squeeze(0), all_reduced, group)


def gathered(x: Any, group: Any) -> Any:
    """all_gather without a gradient."""
    x = x.contiguous()
    out = paddle.empty([x.shape[0] * world_size_of(group), *x.shape[1:]], x.dtype)
    if is_on_host(x, group):
        whole = host_view(out)
        communicator_of(group).all_gather(host_view(x), out=whole.reshape(world_size_of(group), *x.shape))
    else:
        paddle.distributed.stream.all_gather(out, x, group=group)
    return out


def reduce_scattered(x: Any, group: Any) -> Any:
    """reduce_scatter without a gradient."""
    x = x.contiguous()
    rows = x.shape[0] // world_size_of(group)
    out = paddle.empty([rows, *x.shape[1:]], x.dtype)
    if is_on_host(x, group):
        blocks = host_view(x).reshape(world_size_of(group), rows, *x.shape[1:])
        communicator_of(group).reduce_scatter(blocks, out=host_view(out))
    else:
        paddle.distributed.stream.reduce_scatter(out, x, group=group)
    return out


def all_reduced(x: Any, group: Any) -> Any:
    """all_reduce without a gradient."""
    x = x.contiguous()
    if is_on_host(x, group):
        out = paddle.empty_like(x)
        communicator_of(group).all_reduce(host_view(x), out=host_view(out))
        return out
    out = x.clone()
    paddle.distributed.all_reduce(out, group=group)
    return out


class Sum:
    """A sum on its way, which may be written into the summand: that must not be touched until `wait` gives the sum."""

    def __init__(self, work: Any, summand: Any, total: Any) -> None:
        self._work, self._summand, self._total = work, summand, total

    def is_completed(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return bool(self._work.is_completed())

    def wait(self) -> Any:
        """The sum; None on a rank that does not get it."""
        self._work.wait()
        return self._total


def start_sum(x: Any, group: Any, root: int | None = None) -> Sum:
    """Begin the sum over ranks, for all or for rank `root` of the group, and return. Without a gradient.

    Sums of one group begin in the same order on all ranks.
    """
    x = x.contiguous()
    gets = root is None or group.rank == root
    if is_on_host(x, group):
        communicator = communicator_of(group)
        if root is None:
            return Sum(communicator.all_reduce(host_view(x), out=host_view(x), sync_op=False), x, x)
        total = paddle.empty_like(x) if gets else None
        out = None if total is None else host_view(total)
        return Sum(communicator.reduce(host_view(x), root, out=out, sync_op=False), x, total)
    if root is None:
        work = paddle.distributed.all_reduce(x, group=group, sync_op=False)
    else:
        work = paddle.distributed.reduce(x, group.ranks[root], group=group, sync_op=False)
    return Sum(work, x, x if gets else None)


def start_broadcast(x: Any, root: int, group: Any) -> Any:
    """Begin to fill x, which is contiguous, with what rank `root` of the group has in it; x is there after `wait()` of
    what this returns. Without a gradient. Broadcasts of one group begin in the same order on all ranks."""
    if is_on_host(x, group):
        return communicator_of(group).broadcast(host_view(x), root, out=host_view(x), sync_op=False)
    return paddle.distributed.broadcast(x, group.ranks[root], group=group, sync_op=False)


def is_on_host(x: Any, group: Any) -> bool:
    """Whether the communicator moves it; a tensor on a device needs a Paddle group."""
    if x.place.is_cpu_place():
        return True
    if isinstance(group, Communicator):
        rule = f"a Paddle group for tensors on {device_name(x.place)}"
        raise argument_error("collective", "group", rule, "a Communicator", "it moves host memory", kind=TypeError)
    return False
