"""What a rank holds of gradients while the backward passes of a step go by, in bytes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Set

from examples.llama2_13b.parallel.gradients import ON_THE_WAY, in_buckets
from examples.llama2_13b.train.held import Held


class HeldGradients:
    """Gradients stay to the end of a step. From stage 2 of sharding on a bucket leaves when a pass has completed it,
    as in `Gradients`: then its owner keeps the sum, and the last few are on their way.

    Args:
        held: of the parameters by this rank.
        leaves: whether buckets leave in every pass.
        passes: of a step.
    """

    def __init__(self, held: Held, leaves: bool, passes: int) -> None:
        self._held = held
        self._here: set[str] = set()  # and not sent
        self._sums: set[str] = set()
        self._on_the_way: deque[int] = deque(maxlen=ON_THE_WAY)
        self._buckets = in_buckets(list(reversed(held.owners.items())), held.sizes.__getitem__) if leaves else []
        self._num_sends = len(self._buckets) * passes
        self._sent = 0
        self._passes: Counter[str] = Counter()

    @property
    def num_bytes(self) -> int:
        return self._held.num_bytes(self._here | self._sums) + sum(self._on_the_way)

    def add(self, names: Set[str]) -> int:
        """A pass computes these, the last of the model first, and what is ready leaves. Returns the most held."""
        most = self.num_bytes
        for name in reversed([one for one in self._held.owners if one in names]):
            self._here.add(name)
            self._passes[name] += 1
            most = max(most, self.num_bytes)
            while self._sent < self._num_sends and self._is_ready():
                self._send_next()
        return most

    def _is_ready(self) -> bool:
        round_, place = divmod(self._sent, len(self._buckets))
        return all(self._passes[name] > round_ for name in self._buckets[place][1])

    def _send_next(self) -> None:
        owner, names = self._buckets[self._sent % len(self._buckets)]
        self._sent += 1
        self._here.difference_update(names)
        is_sum = owner == self._held.rank and not self._sums.issuperset(names)  # else it is added to the one there is
        self._on_the_way.append(0 if is_sum else self._held.num_bytes(names))
        if owner == self._held.rank:
            self._sums.update(names)
