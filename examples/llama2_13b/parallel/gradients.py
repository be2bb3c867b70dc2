"""Gradients: their mean over the copies of the model, under way while the backward pass still computes.

Parameters go into buckets from the last to the first, as the backward pass comes by. A bucket leaves when its last
gradient is there, and after the buckets before it, so that all ranks send in one order. Weights that have seen a part
of the tokens only, the norms, come last: they are summed over the ranks of tensor first.

The two stages that have a tied embedding add their means at the very end. Each adds the same two numbers, so both have
the same bits, in whatever order the library of a device sums over the copies.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import paddle
from paddle import Tensor
from paddle.distributed.fleet.utils.sequence_parallel_utils import is_sequence_parallel_parameter

from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import Forward, is_shared
from examples.llama2_13b.parallel.trace import COMMUNICATION, EXPOSED, Trace
from fusionkit.parallel import collectives

Item = TypeVar("Item")
# 10 MB take 10 ms at 1 GB/s, so the start of a message is a small part. Matrices of 13B have 26 million elements.
BUCKET_ELEMENTS = 2_500_000
# Buckets that travel at one time, where they leave in every backward pass so that a rank need not hold them.
ON_THE_WAY = 2
NEVER = [math.inf]


@dataclass
class Bucket:
    """Gradients that travel as one.

    Args:
        owner: the rank of sharding that gets their sum.
        parameters: whose they are.
        pending: a sum on its way.
        total: of the sums that have come.
        arrives: tells the trace that a pending sum has come.
    """

    owner: int
    parameters: list[Tensor] = field(default_factory=list)
    pending: Any = None
    total: Tensor | None = None
    arrives: Callable[[], None] | None = None

    def receive(self, trace: Trace) -> None:
        if self.pending is None:
            return
        with trace.span(EXPOSED, "wait for gradients"):
            came, self.pending = self.pending.wait(), None
        if self.arrives is not None:
            self.arrives()
        if came is not None:
            self.total = came if self.total is None else self.total.add_(came)


class Gradients:
    """The gradients of a model's trainable parameters on the ranks of a mesh.

    Once a step, in the last backward pass, buckets leave for all copies, or with sharding for their owners. From stage
    2 of sharding on they leave in every backward pass, and only the owner keeps the sum.

    Args:
        mesh: whose copies of the model are averaged.
        parameters: all of this rank's, in one order on all ranks.
    """

    def __init__(self, mesh: Mesh, parameters: Iterable[Tensor]) -> None:
        self._mesh = mesh
        trained = [parameter for parameter in parameters if not parameter.stop_gradient]
        owned = list(zip(trained, mesh.sharding.owners(trained), strict=True))
        self._partial = [parameter for parameter in trained if is_sequence_parallel_parameter(parameter)]
        self._shared = [parameter for parameter in trained if is_shared(parameter)]
        late = is_sequence_parallel_parameter
        self._early = _buckets([(one, owner) for one, owner in reversed(owned) if not late(one)])
        self._late = _buckets([(one, owner) for one, owner in owned if late(one)])
        self._passes: Counter[str] = Counter()  # that have added to a gradient
        self._wanted = NEVER  # of them, before each round of sending
        self._sent = 0  # buckets, of all rounds
        self._on_the_way: deque[Bucket] = deque()
        self._failure: BaseException | None = None  # of a hook

    def watch(self) -> Gradients:
        """Have the backward pass tell of every gradient, for `expect`."""
        if self._mesh.replicas is not None:
            this = weakref.ref(self)  # the model lives no longer for it
            for bucket in self._early:
                for parameter in bucket.parameters:
                    parameter._register_backward_hook(lambda name=parameter.name: _arrived(this, name))
        return self

    def expect(self, micro_batches: int, most: int) -> None:
        """Before a step's backward passes, of which this copy has `micro_batches` and no copy has more than `most`."""
        every_pass = self._mesh.sharding.stage >= 2
        self._wanted = list(range(1, most + 1)) if every_pass else [micro_batches]
        self._passes.clear()
        self._sent = 0

    def arrived(self, name: str) -> None:
        """A backward pass has added to this gradient.

        What fails here waits for `checked` or `reduce`. Paddle 3.3.1 goes on after a hook that raises: a later layer
        then fails with an error of its own, and the first one is lost.
        """
        if self._failure is not None:
            return
        try:
            self._passes[name] += 1
            while self._sent < len(self._early) * len(self._wanted) and self._is_ready():
                self._send_next()
        except BaseException as error:  # a second Ctrl-C too
            self._failure = error

    def checked(self, forward: Forward) -> Forward:
        """The same, but that it raises what has failed in the backward passes before."""

        def run(*micro_batch: Any) -> Tensor:
            self._raise_failure()
            return forward(*micro_batch)

        return run

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def reduce(self) -> None:
        """Every gradient becomes that of the whole copy, and its mean over the copies; one that had no rows counts
        with zeros. Frozen parameters have none. With sharding the owner of a parameter gets the mean, the others
        none.

        Raises:
            CommunicatorError: a rank is lost, perhaps while the backward pass computed.
        """
        self._raise_failure()
        self._sum_of_tokens()
        if self._mesh.replicas is not None:
            self._mean()
        for parameter in self._shared:
            if parameter.grad is not None:  # with sharding on the owner, which both stages choose alike
                parameter.grad = self._mesh.pipeline.sum_of_ends(parameter.grad)

    def _mean(self) -> None:
        """Over the copies: send what is left, and receive all."""
        while self._sent < len(self._early) * len(self._wanted):
            self._send_next()
        for bucket in self._late:
            self._send(bucket)
        for bucket in (*self._early, *self._late):
            self._finish(bucket)
        self._on_the_way.clear()
        self._wanted, self._sent = NEVER, 0

    def _sum_of_tokens(self) -> None:
        """Sum the gradients of weights that have seen this rank's tokens only, in one call.

        All ranks of a copy have one or none has: in a step of few rows a copy of the model may get no row.
        """
        found = [parameter for parameter in self._partial if parameter.grad is not None]
        if found:
            total = collectives.all_reduced(_joined([one.grad for one in found]), self._mesh.tensor.group)
            _divide(total, found)

    def _is_ready(self) -> bool:
        """Whether the next bucket has all of its round's gradients."""
        round_, place = divmod(self._sent, len(self._early))
        return all(self._passes[one.name] >= self._wanted[round_] for one in self._early[place].parameters)

    def _send_next(self) -> None:
        for bucket in self._early:
            if bucket.pending is not None and bucket.pending.is_completed():
                bucket.receive(self._mesh.trace)  # so what was sent is not held
        if self._mesh.sharding.stage >= 2:
            while len(self._on_the_way) >= ON_THE_WAY:
                self._on_the_way.popleft().receive(self._mesh.trace)
            self._on_the_way.append(self._early[self._sent % len(self._early)])
        self._send(self._early[self._sent % len(self._early)])
        self._sent += 1

    def _send(self, bucket: Bucket) -> None:
        bucket.receive(self._mesh.trace)
        joined = _joined([_zeros(one) if one.grad is None else one.grad for one in bucket.parameters])
        for parameter in bucket.parameters:
            parameter.grad = None
        sharding = self._mesh.sharding
        bucket.arrives = self._mesh.trace.start(COMMUNICATION, "gradients")
        if sharding.size == 1:
            bucket.pending = collectives.start_sum(joined, self._mesh.replicas)
        else:
            bucket.pending = collectives.start_sum(joined, sharding.group, bucket.owner)

    def _finish(self, bucket: Bucket) -> None:
        bucket.receive(self._mesh.trace)
        total, bucket.total = bucket.total, None
        if total is None:
            return
        if self._mesh.sharding.size > 1 and self._mesh.data is not None:
            total = collectives.all_reduced(total, self._mesh.data)
        _divide(total.scale_(1 / self._mesh.copies), bucket.parameters)


def _arrived(gradients: Any, name: str) -> None:
    if found := gradients():
        found.arrived(name)


def in_buckets(owned: Sequence[tuple[Item, int]], size: Callable[[Item], int]) -> list[tuple[int, list[Item]]]:
    """(owner, neighbours that it owns), until there are enough. Joining copies, so a large one is alone."""
    open_ones: dict[int, list[Item]] = {}
    found = []
    for item, owner in owned:
        if size(item) >= BUCKET_ELEMENTS:
            found.append((owner, [item]))
            continue
        items = open_ones.setdefault(owner, [])
        items.append(item)
        if sum(map(size, items)) >= BUCKET_ELEMENTS:
            found.append((owner, open_ones.pop(owner)))
    return found + list(open_ones.items())


def _buckets(owned: Sequence[tuple[Tensor, int]]) -> list[Bucket]:
    return [Bucket(*bucket) for bucket in in_buckets(owned, lambda parameter: int(parameter.size))]


def _zeros(parameter: Tensor) -> Tensor:
    return paddle.zeros(parameter.shape, parameter.dtype)  # not `zeros_like`: the value may be with its owner alone


def _joined(gradients: list[Tensor]) -> Tensor:
    """A tensor of its own, for the gradients may go; it shares the memory of one that stands alone."""
    flat = [gradient.flatten() for gradient in gradients]
    return flat[0] if len(flat) == 1 else paddle.concat(flat)


def _divide(joined: Tensor, parameters: list[Tensor]) -> None:
    parts = [joined] if len(parameters) == 1 else paddle.split(joined, [one.size for one in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad_ = part.reshape(parameter.shape)  # `grad = ` copies it, 0.6 GB for a matrix of 13B
