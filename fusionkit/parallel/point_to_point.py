"""Tensors from one rank to another, while both compute.

Host tensors go through the communicator, device tensors through `paddle.distributed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

from fusionkit.frameworks.paddle import host_view
from fusionkit.parallel.collectives import is_on_host
from fusionkit.parallel.groups import communicator_of


class Exchange:
    """Sends and receives that begin together, so no order of them can block. They go on while the process computes.

    A peer posts its own side in one exchange too. Exchanges of two ranks match in the order in which they begin.

    Args:
        sends: (tensor, peer), each not to be changed until `wait` returns; contiguous.
        receives: (tensor of the shape and dtype that comes, peer), to be read after `wait_received`.
        group: a Paddle group or a `Communicator`; peers are ranks in it.
    """

    def __init__(self, sends: Sequence[tuple[Any, int]], receives: Sequence[tuple[Any, int]], group: Any) -> None:
        self._tensors = [tensor for tensor, _ in (*sends, *receives)]
        start = _on_host if all(is_on_host(tensor, group) for tensor in self._tensors) else _on_device
        works = start(sends, receives, group)
        self._sends, self._receives = works[: len(sends)], works[len(sends) :]

    def wait_received(self) -> None:
        """Until everything has come that this rank receives."""
        while self._receives:
            self._receives.pop().wait()

    def is_completed(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return all(work.is_completed() for work in (*self._sends, *self._receives))

    def wait(self) -> None:
        """Until the tensors are this rank's again."""
        self.wait_received()
        while self._sends:
            self._sends.pop().wait()


def _on_host(sends: Sequence[tuple[Any, int]], receives: Sequence[tuple[Any, int]], group: Any) -> list[Any]:
    communicator = communicator_of(group)
    works = [communicator.send(host_view(tensor), peer, sync_op=False) for tensor, peer in sends]
    return works + [communicator.recv(host_view(tensor), peer, sync_op=False) for tensor, peer in receives]


def _on_device(sends: Sequence[tuple[Any, int]], receives: Sequence[tuple[Any, int]], group: Any) -> list[Any]:
    """In one order of all ranks' messages: the first of them that is not done yet is the next of both its ranks.

    On a custom device `batch_isend_irecv` begins its calls one after the other, and a send of any size ends with its
    receipt: Paddle 3.3.1's ProcessGroupCustom inherits a StartCoalescing that does nothing.
    """
    distributed = paddle.distributed
    calls = [
        (_turn(group.rank, peer), distributed.P2POp(distributed.isend, tensor, group.ranks[peer], group))
        for tensor, peer in sends
    ]
    calls += [
        (_turn(peer, group.rank), distributed.P2POp(distributed.irecv, tensor, group.ranks[peer], group))
        for tensor, peer in receives
    ]
    order = sorted(range(len(calls)), key=lambda number: calls[number][0])
    works = distributed.batch_isend_irecv([calls[number][1] for number in order])
    return [works[order.index(number)] for number in range(len(calls))]


def _turn(sender: int, receiver: int) -> tuple[int, int, int]:
    """Even ranks send first, so that a row of neighbours needs two rounds and not as many as there are ranks."""
    return sender % 2, sender, receiver
